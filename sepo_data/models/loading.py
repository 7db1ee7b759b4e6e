"""Load the weights of oracle and reference for scoring.

Adapters of the same base share it in memory; they are switched and never merged, because
merging rounds the weights and so changes rewards.
"""

import gc
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..errors import ModelError, first_line
from ..settings import Dtype
from .adapters import attach, switched_to
from .checkpoints import Checkpoint, not_causal, same_model
from .description import PairFacts
from .logprobs import Logps, token_logps
from .packing import TokenSequence
from .packing_check import prepare
from .placement import device_map, scoring_device
from .self_check import checked_logps, not_reproducible
from .weights import load_base

BATCH_TOKENS_CPU = 2048  # larger batches are no faster; smaller ones split pairs that share a prompt
BATCH_TOKENS_ACCELERATOR = {"float32": 16_384, "float16": 32_768, "bfloat16": 32_768}

PROBE_TOKENS = 16
PROBE_LEAK = 0.05  # causal models leak rounding errors only; BERT about 1


Role = Literal["oracle", "ref"]
ROLES: tuple[Role, ...] = get_args(Role)


@dataclass
class Scorer:
    """A model in one role: plain, with one of its adapters, or with its adapters disabled.

    Attributes:
        model: The model, which the other role may share.
        role: Context manager that switches the adapters.
        batch_tokens: Default maximum number of tokens in a forward pass.
        precision: torch's setting for float32 products; None: the process's own.
        alone: Whether every sequence gets its own forward pass, see `self_check`.
    """

    model: PreTrainedModel
    role: Callable[[], AbstractContextManager[object]]
    batch_tokens: int
    precision: str | None = None
    alone: bool = False

    @contextmanager
    def active(self) -> Iterator[None]:
        """Switch the adapters and set the precision for scoring."""
        with self.role(), matmul_precision(self.precision):
            yield

    def logps(
        self,
        sequences: Sequence[TokenSequence],
        batch_tokens: int | None = None,
        on_batch: Callable[[int], None] = lambda tokens: None,
    ) -> list[Logps]:
        """Score sequences, see `logprobs.token_logps`."""
        most = 1 if self.alone else batch_tokens or self.batch_tokens
        with self.active():
            return token_logps(self.model, sequences, batch_tokens=most, on_batch=on_batch)

    def checked_logps(self, sequences: Sequence[TokenSequence]) -> tuple[list[Logps], float]:
        """As `logps`, a few of them compared with plain forwards by `self_check`.

        Returns:
            The log-probs, and the largest difference in nats; NaN if some are no numbers, or there are none.

        Raises:
            ScoringError: As `self_check.checked_logps`.
        """
        found = self.logps(sequences)
        if not sequences or not all(np.isfinite(one).all() for one in found):
            return found, float("nan")
        return checked_logps(self, sequences, found, partial(self.logps, sequences), first=True)

    def probe(self) -> Tensor:
        """Compute the logits of two sequences that differ only in their last token, float32, ``(2, T, V)``.

        Raises:
            ModelError: If the model does not read plain token ids.
        """
        vocabulary = int(self.model.config.get_text_config().vocab_size)
        input_ids = torch.arange(PROBE_TOKENS).repeat(2, 1) * vocabulary // PROBE_TOKENS
        input_ids[1, -1] = 0
        try:
            with self.active(), torch.inference_mode():
                logits: Tensor = self.model(input_ids=input_ids.to(self.model.device), use_cache=False).logits
        except (AttributeError, TypeError, ValueError, IndexError) as error:
            name = type(self.model).__name__
            raise ModelError(
                f"{name}: does not read plain token ids ({first_line(error)}). Use another model."
            ) from error
        return logits.float().cpu()


class ModelPair(NamedTuple):
    """Oracle and reference, ready to score."""

    oracle: Scorer
    ref: Scorer

    def exact(self) -> "ModelPair":
        """The same models without TF32."""
        return ModelPair(*(replace(scorer, precision="highest") for scorer in self))


@dataclass(frozen=True)
class Loading:
    """How weights are loaded.

    Attributes:
        dtype: Dtype in memory, whatever the stored dtype.
        device: ``auto`` (CUDA, else MPS, else CPU), or a torch device.
        longest: Maximum length of the sequences to score, in tokens.
        exact: Never use TF32 for float32 products on CUDA.
    """

    dtype: Dtype = "float32"
    device: str = "auto"
    longest: int = sys.maxsize
    exact: bool = False

    @property
    def place(self) -> torch.device:
        """The torch device of the setting.

        Raises:
            SettingsError: If there is no such device.
        """
        return scoring_device(self.device)

    @property
    def rounds(self) -> bool:
        """Whether the models compute in lower precision than float32."""
        return self.dtype != "float32" or (self.place.type == "cuda" and not self.exact)

    @property
    def precision(self) -> str | None:
        """Torch's setting for float32 products on CUDA; docs/float32.md says what TF32 changes."""
        if self.place.type != "cuda":
            return None
        return "highest" if self.exact or self.dtype != "float32" else "high"

    @property
    def batch_tokens(self) -> int:
        """Default maximum number of tokens in a forward pass on the device."""
        return BATCH_TOKENS_CPU if self.place.type == "cpu" else BATCH_TOKENS_ACCELERATOR[self.dtype]


def scorers(facts: PairFacts, how: Loading, *, in_turn: bool) -> Iterator[tuple[Role, Scorer]]:
    """Yield oracle and reference; ``in_turn`` drops each before the next is loaded.

    Raises:
        ModelError: See `load_pair`.
    """
    if not in_turn:
        yield from zip(ROLES, load_pair(facts, how), strict=True)
        return
    oracle, ref = facts.checkpoints
    ref_probe = _load_alone(ref, how).probe()  # fails before hours of scoring, not after
    scorer = _load_alone(oracle, how)
    probe = scorer.probe()
    _check_causal(oracle, scorer, probe)
    if torch.equal(probe, ref_probe):
        raise same_model(facts.oracle, facts.ref)
    prepare(scorer.model, how.longest, [scorer.active])
    yield "oracle", scorer
    del scorer
    yield "ref", load_scorer(ref, how)


def load_pair(facts: PairFacts, how: Loading) -> ModelPair:
    """Load the weights of oracle and reference; a shared base is loaded only once.

    Args:
        facts: From `description.describe_pair`.
        how: Precision and device.

    Raises:
        ModelError: If weights are missing or broken, a model is not causal, or both are the same.
        SettingsError: If there is no such device.
    """
    oracle, ref = facts.checkpoints
    shared = _load_shared(oracle, ref, how) if oracle.shares_base(ref) else None
    pair = ModelPair(*(shared or (_load_alone(oracle, how), _load_alone(ref, how))))
    probes = [scorer.probe() for scorer in pair]
    for checkpoint, scorer, probe in zip(facts.checkpoints, pair, probes, strict=True):
        _check_causal(checkpoint, scorer, probe)
    if torch.equal(*probes):  # other folders with the same weights, or an untrained adapter
        raise same_model(facts.oracle, facts.ref)
    if pair.oracle.model is pair.ref.model:
        prepare(pair.oracle.model, how.longest, [scorer.active for scorer in pair])
    else:
        for scorer in pair:
            prepare(scorer.model, how.longest, [scorer.active])
    return pair


def load_scorer(checkpoint: Checkpoint, how: Loading) -> Scorer:
    """Load a single model for scoring, with the checks of `load_pair`.

    Raises:
        ModelError: If weights are missing or broken, or the model is not causal.
        SettingsError: If there is no such device.
    """
    scorer = _load_alone(checkpoint, how)
    _check_causal(checkpoint, scorer, scorer.probe())
    prepare(scorer.model, how.longest, [scorer.active])
    return scorer


def load_plain(checkpoint: Checkpoint, how: Loading) -> PreTrainedModel:
    """Load a single model with its adapter for generation, without packing.

    Raises:
        ModelError: If weights are missing or broken.
        SettingsError: If there is no such device.
    """
    return _load_alone(checkpoint, how).model


@contextmanager
def matmul_precision(precision: str | None) -> Iterator[None]:
    """Temporarily set torch's precision of float32 products; None leaves it unchanged."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision or before)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _load_alone(checkpoint: Checkpoint, how: Loading) -> Scorer:
    model = _load_placed(checkpoint, how)
    if checkpoint.adapter is not None:
        model = attach(model, checkpoint.adapter, "default")
    return Scorer(model, nullcontext, how.batch_tokens, how.precision)


def _load_placed(checkpoint: Checkpoint, how: Loading) -> PreTrainedModel:
    gc.collect()  # models spread by accelerate are in reference cycles
    if how.place.type == "cuda":
        torch.cuda.empty_cache()  # otherwise the memory of dropped models counts as used
    place = device_map(checkpoint, how.dtype, how.place)
    return load_base(checkpoint, dtype=getattr(torch, how.dtype), device_map=place)


def _load_shared(oracle: Checkpoint, ref: Checkpoint, how: Loading) -> tuple[Scorer, Scorer] | None:
    """Load one base for both roles; None if an adapter changes the base itself (biases, PiSSA)."""
    model: Any = _load_placed(oracle, how)
    untouched = Scorer(model, nullcontext, how.batch_tokens, how.precision).probe()
    for name, checkpoint in zip(ROLES, (oracle, ref), strict=True):
        if checkpoint.adapter is not None:
            model = attach(model, checkpoint.adapter, name)
    bare = Scorer(model, model.disable_adapter, how.batch_tokens, how.precision)
    if not torch.equal(bare.probe(), untouched):
        return None
    roles = [
        model.disable_adapter if checkpoint.adapter is None else partial(switched_to, model, name)
        for name, checkpoint in zip(ROLES, (oracle, ref), strict=True)
    ]
    first, second = (Scorer(model, role, how.batch_tokens, how.precision) for role in roles)
    return first, second


def is_causal(probe: Tensor) -> bool:
    """Whether the last token leaves earlier predictions unchanged; in BERT it does not."""
    change = (probe[0] - probe[1]).abs().amax(-1)  # (T,)
    return not change[:-1].max() > PROBE_LEAK * change[-1]  # true for NaN, which is reported while scoring


def _check_causal(checkpoint: Checkpoint, scorer: Scorer, probe: Tensor) -> None:
    if is_causal(probe):
        return
    again = scorer.probe()
    leak, noise = ((one - probe[0])[:-1].abs().max() for one in (probe[1], again[0]))
    if noise > leak / 2:  # what differs is not what the last token leaks
        off = float((again.log_softmax(-1) - probe.log_softmax(-1)).abs().max())
        raise ModelError(f"{checkpoint.base.location}: {not_reproducible(off)}")
    raise not_causal(checkpoint.base, checkpoint.config.model_type)
