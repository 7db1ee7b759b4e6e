"""The weights of oracle and reference, ready to score.

Adapters that have one base share it in memory; they are switched, never merged,
since the rounding of merged weights would move rewards.
"""

import gc
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

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
from .weights import load_base

BATCH_TOKENS_CPU = 2048  # larger batches are no faster; smaller ones part pairs from their prompts
BATCH_TOKENS_ACCELERATOR = {"float32": 16_384, "float16": 32_768, "bfloat16": 32_768}

PROBE_TOKENS = 16
PROBE_LEAK = 0.05  # causal models leak rounding errors at most; BERT about 1


Role = Literal["oracle", "ref"]
ROLES: tuple[Role, ...] = get_args(Role)


@dataclass
class Scorer:
    """A model in one role: as it is, or with one of its adapters, or without them.

    Attributes:
        model: The model; the other role may have the same.
        role: Switches adapters for as long as it is entered.
        batch_tokens: Most tokens in a forward pass, unless said otherwise.
        precision: How float32 products are computed, as torch names it; None: as the process does.
        alone: Whether every sequence needs a forward pass of its own, see `self_check`.
    """

    model: PreTrainedModel
    role: Callable[[], AbstractContextManager[object]]
    batch_tokens: int
    precision: str | None = None
    alone: bool = False

    @contextmanager
    def active(self) -> Iterator[None]:
        """The model as it scores: its adapters switched, its precision set."""
        with self.role(), matmul_precision(self.precision):
            yield

    def logps(
        self,
        sequences: Sequence[TokenSequence],
        batch_tokens: int | None = None,
        on_batch: Callable[[int], None] = lambda tokens: None,
    ) -> list[Logps]:
        """As `logprobs.token_logps`."""
        most = 1 if self.alone else batch_tokens or self.batch_tokens
        with self.active():
            return token_logps(self.model, sequences, batch_tokens=most, on_batch=on_batch)

    def probe(self) -> Tensor:
        """Logits of two sequences that differ in their last token only, float32, ``(2, T, V)``.

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
                f"{name}: does not read plain token ids ({first_line(error)}). Use another."
            ) from error
        return logits.float().cpu()


class ModelPair(NamedTuple):
    """Oracle and reference, ready to score."""

    oracle: Scorer
    ref: Scorer

    def exact(self) -> "ModelPair":
        """The same models, without TF32."""
        return ModelPair(*(replace(scorer, precision="highest") for scorer in self))


@dataclass(frozen=True)
class Loading:
    """How weights are loaded.

    Attributes:
        dtype: What the models compute in, whatever they are stored in.
        device: ``auto`` (CUDA, else MPS, else CPU), or a torch device.
        longest: Most tokens of a sequence to score.
        exact: Compute float32 products in float32 proper, where CUDA is else allowed TF32.
    """

    dtype: Dtype = "float32"
    device: str = "auto"
    longest: int = sys.maxsize
    exact: bool = False

    @property
    def place(self) -> torch.device:
        """The device.

        Raises:
            SettingsError: If there is no such device.
        """
        return scoring_device(self.device)

    @property
    def rounds(self) -> bool:
        """Whether the models compute in less than float32."""
        return self.dtype != "float32" or (self.place.type == "cuda" and not self.exact)

    @property
    def precision(self) -> str | None:
        """How float32 products are computed on CUDA, see docs/float32.md for what TF32 does."""
        if self.place.type != "cuda":
            return None
        return "highest" if self.exact or self.dtype != "float32" else "high"

    @property
    def batch_tokens(self) -> int:
        """Most tokens in a forward pass that suit the device."""
        return BATCH_TOKENS_CPU if self.place.type == "cpu" else BATCH_TOKENS_ACCELERATOR[self.dtype]


def scorers(facts: PairFacts, how: Loading, *, in_turn: bool) -> Iterator[tuple[Role, Scorer]]:
    """Oracle and reference, loaded together, or ``in_turn``: then each is dropped before the next is loaded.

    Raises:
        ModelError: As `load_pair`.
    """
    if not in_turn:
        yield from zip(ROLES, load_pair(facts, how), strict=True)
        return
    oracle, ref = facts.checkpoints
    ref_probe = _load_alone(ref, how).probe()  # before hours of scoring, not after them
    scorer = _load_alone(oracle, how)
    probe = scorer.probe()
    _check_causal(oracle, probe)
    if torch.equal(probe, ref_probe):
        raise same_model(facts.oracle, facts.ref)
    prepare(scorer.model, how.longest, [scorer.active])
    yield "oracle", scorer
    del scorer
    yield "ref", load_scorer(ref, how)


def load_pair(facts: PairFacts, how: Loading) -> ModelPair:
    """Load the weights of oracle and reference; a base that both have only once.

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
    for checkpoint, probe in zip(facts.checkpoints, probes, strict=True):
        _check_causal(checkpoint, probe)
    if torch.equal(*probes):  # also when other folders hold the same weights, or an adapter was never trained
        raise same_model(facts.oracle, facts.ref)
    if pair.oracle.model is pair.ref.model:
        prepare(pair.oracle.model, how.longest, [scorer.active for scorer in pair])
    else:
        for scorer in pair:
            prepare(scorer.model, how.longest, [scorer.active])
    return pair


def load_scorer(checkpoint: Checkpoint, how: Loading) -> Scorer:
    """Load a single model to score, as `load_pair`.

    Raises:
        ModelError: If weights are missing or broken, or the model is not causal.
        SettingsError: If there is no such device.
    """
    scorer = _load_alone(checkpoint, how)
    _check_causal(checkpoint, scorer.probe())
    prepare(scorer.model, how.longest, [scorer.active])
    return scorer


def load_plain(checkpoint: Checkpoint, how: Loading) -> PreTrainedModel:
    """Load a single model as it is, with its adapter: to generate, where nothing is packed.

    Raises:
        ModelError: If weights are missing or broken.
        SettingsError: If there is no such device.
    """
    return _load_alone(checkpoint, how).model


@contextmanager
def matmul_precision(precision: str | None) -> Iterator[None]:
    """Set how float32 products may be computed, for a while; None leaves it."""
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
    gc.collect()  # models that accelerate has spread hold themselves
    if how.place.type == "cuda":
        torch.cuda.empty_cache()  # else memory of models that were dropped counts as in use
    place = device_map(checkpoint, how.dtype, how.place)
    return load_base(checkpoint, dtype=getattr(torch, how.dtype), device_map=place)


def _load_shared(oracle: Checkpoint, ref: Checkpoint, how: Loading) -> tuple[Scorer, Scorer] | None:
    """One base in both roles; None if an adapter has changed the base itself (biases, PiSSA)."""
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
    """Whether a last token changes nothing that is predicted before it is seen; BERT's does."""
    change = (probe[0] - probe[1]).abs().amax(-1)  # (T,)
    return not change[:-1].max() > PROBE_LEAK * change[-1]  # of what is no number somebody else speaks


def _check_causal(checkpoint: Checkpoint, probe: Tensor) -> None:
    if not is_causal(probe):
        raise not_causal(checkpoint.base, checkpoint.config.model_type)
