"""The oracle and the reference: what they are, then their weights, then their log-probs.

`describe_pair` finds out what can be known without weights: revisions, tokenizer,
context. `load_pair` loads the weights; PEFT adapters on one base share it, unmerged,
since merging alone would move rewards. Code from the Hub is never run, and pickled
weights are never opened.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import torch
from huggingface_hub import HfApi, try_to_load_from_cache
from huggingface_hub.errors import OfflineModeIsEnabled
from torch import Tensor
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from .errors import HubError, ModelError, SettingsError, TokenizerError
from .hub import model_revision
from .logprobs import Logps, TokenSequence, token_logps
from .settings import Dtype

CONFIG, ADAPTER_CONFIG = "config.json", "adapter_config.json"
WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
ADAPTER_WEIGHTS = ("adapter_model.safetensors",)
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
CONTENT = ("*.safetensors", "*.safetensors.index.json", CONFIG, ADAPTER_CONFIG)  # what a folder's hash covers

BATCH_TOKENS_CPU = 1024  # larger batches leave the cache and get slower
BATCH_TOKENS_ACCELERATOR = {"float32": 16_384, "float16": 32_768, "bfloat16": 32_768}

PROBE_TOKENS = 16


@dataclass(frozen=True)
class ModelFacts:
    """What the manifest says of a model.

    Attributes:
        name: Name on the Hub, or of the folder, without its parents.
        revision: Commit on the Hub, or ``sha256:…`` of the folder's configuration and weights.
        base: For an adapter, ``name@revision`` of the model that it adapts.
    """

    name: str
    revision: str
    base: str | None


@dataclass(frozen=True)
class Snapshot:
    """A folder, or a repository on the Hub at one commit.

    Attributes:
        location: The folder's path, or the repository's name.
        revision: As in `ModelFacts`.
        commit: The commit; None for a folder.
        files: Names of the files at its top.
    """

    location: str
    revision: str
    commit: str | None
    files: frozenset[str]

    @property
    def name(self) -> str:
        """As in `ModelFacts`."""
        return self.location if self.commit else Path(self.location).resolve().name


@dataclass(frozen=True)
class Checkpoint:
    """Where one model's weights are: all in ``base``, or partly in an ``adapter`` on top of it."""

    base: Snapshot
    adapter: Snapshot | None
    config: PreTrainedConfig

    @property
    def facts(self) -> ModelFacts:
        """What the manifest says of it."""
        if self.adapter is None:
            return ModelFacts(self.base.name, self.base.revision, None)
        base = f"{self.base.name}@{self.base.revision}"
        return ModelFacts(self.adapter.name, self.adapter.revision, base)


@dataclass(frozen=True)
class PairFacts:
    """Oracle and reference as far as they are known without weights.

    Attributes:
        tokenizer: The one that both read.
        oracle: What the oracle is.
        ref: What the reference is.
        max_context: Most tokens that both can read; None if nothing limits them.
        checkpoints: Where the weights of oracle and reference are.
    """

    tokenizer: PreTrainedTokenizerBase
    oracle: ModelFacts
    ref: ModelFacts
    max_context: int | None
    checkpoints: tuple[Checkpoint, Checkpoint]


@dataclass(frozen=True)
class Scorer:
    """A model in one of its roles: as it is, or with one of its adapters, or without them."""

    model: PreTrainedModel
    role: Callable[[], AbstractContextManager[object]]

    def probe(self) -> Tensor:
        """Logits of two token sequences that differ in their last token, float32, ``(2, T, V)``."""
        vocabulary = int(self.model.config.get_text_config().vocab_size)
        input_ids = torch.arange(PROBE_TOKENS).repeat(2, 1) * vocabulary // PROBE_TOKENS
        input_ids[1, -1] = 0
        with self.role(), torch.inference_mode():
            logits: Tensor = self.model(input_ids=input_ids.to(self.model.device), use_cache=False).logits
        return logits.float().cpu()


@dataclass(frozen=True)
class ModelPair:
    """Oracle and reference, ready to score.

    Attributes:
        oracle: The oracle.
        ref: The reference; its model may be the oracle's, in another role.
        batch_tokens: Most tokens in a forward pass, unless said otherwise.
    """

    oracle: Scorer
    ref: Scorer
    batch_tokens: int

    def oracle_logps(
        self,
        sequences: Sequence[TokenSequence],
        batch_tokens: int | None = None,
        on_batch: Callable[[int], None] = lambda tokens: None,
    ) -> list[Logps]:
        """Log-probs under the oracle, see `logprobs.token_logps`."""
        with self.oracle.role():
            return token_logps(
                self.oracle.model, sequences, batch_tokens=batch_tokens or self.batch_tokens, on_batch=on_batch
            )

    def ref_logps(
        self,
        sequences: Sequence[TokenSequence],
        batch_tokens: int | None = None,
        on_batch: Callable[[int], None] = lambda tokens: None,
    ) -> list[Logps]:
        """Log-probs under the reference, see `logprobs.token_logps`."""
        with self.ref.role():
            return token_logps(
                self.ref.model, sequences, batch_tokens=batch_tokens or self.batch_tokens, on_batch=on_batch
            )


def describe_pair(
    oracle: str, ref: str, *, oracle_revision: str | None = None, ref_revision: str | None = None
) -> PairFacts:
    """Find out what oracle and reference are, and that they belong together; no weights are loaded.

    Args:
        oracle: Name on the Hub or folder, of a model or of a PEFT adapter.
        ref: The same.
        oracle_revision: Branch, tag or commit of an oracle on the Hub.
        ref_revision: Branch, tag or commit of a reference on the Hub.

    Raises:
        ModelError: If one cannot be used, both are the same, or their vocabularies differ.
        TokenizerError: If no tokenizer can be loaded.
        HubError: If the Hub cannot be reached.
    """
    checkpoints = _describe(oracle, oracle_revision), _describe(ref, ref_revision)
    facts = [checkpoint.facts for checkpoint in checkpoints]
    if (facts[0].revision, facts[0].base) == (facts[1].revision, facts[1].base):
        raise _identical(*facts)
    tokenizer = _common_tokenizer(*checkpoints)
    for checkpoint in checkpoints:
        _check_embeds(checkpoint, tokenizer)
    contexts = [_max_context(checkpoint.config) for checkpoint in checkpoints]
    limit = min((context for context in contexts if context is not None), default=None)
    return PairFacts(tokenizer, facts[0], facts[1], limit, checkpoints)


def load_pair(facts: PairFacts, *, dtype: Dtype = "float32", device: str = "auto") -> ModelPair:
    """Load the weights of oracle and reference; a base that both have only once.

    Args:
        facts: From `describe_pair`.
        dtype: What the models compute in, whatever they are stored in.
        device: ``auto`` (CUDA, else MPS, else CPU), or a torch device.

    Raises:
        ModelError: If weights are missing or broken, a model is not causal, or both are the same.
        SettingsError: If there is no such device.
    """
    place = _device(device)
    if place.type == "cuda" and dtype == "float32":
        # TF32 products halve the time; selections of the top 30% overlap with full float32's by 0.98 to 0.99
        torch.set_float32_matmul_precision("high")
    load = partial(_load_base, dtype=getattr(torch, dtype), device=place)
    oracle, ref = facts.checkpoints
    scorers = _load_shared(oracle, ref, load) if oracle.base.revision == ref.base.revision else None
    scorers = scorers or (_load_alone(oracle, load), _load_alone(ref, load))
    probes = [scorer.probe() for scorer in scorers]
    for checkpoint, probe in zip(facts.checkpoints, probes, strict=True):
        _check_causal(checkpoint, probe)
    if torch.equal(*probes):
        raise _identical(facts.oracle, facts.ref)
    on_cpu = place.type == "cpu"
    return ModelPair(*scorers, batch_tokens=BATCH_TOKENS_CPU if on_cpu else BATCH_TOKENS_ACCELERATOR[dtype])
