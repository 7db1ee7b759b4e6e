"""The weights of oracle and reference, ready to score.

Adapters that have one base share it in memory; they are switched, never merged,
since the rounding of merged weights would move rewards.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from .checkpoints import Checkpoint, PairFacts, Snapshot, errors_as, not_causal, same_model
from .errors import ModelError, SettingsError, first_line
from .fast_path import prepare
from .logprobs import Logps, token_logps
from .packing import TokenSequence
from .settings import Dtype

BATCH_TOKENS_CPU = 1024  # larger batches leave the cache and get slower
BATCH_TOKENS_ACCELERATOR = {"float32": 16_384, "float16": 32_768, "bfloat16": 32_768}

PROBE_TOKENS = 16
PROBE_LEAK = 0.05  # causal models leak rounding errors at most; BERT about 1

LoadBase = Callable[[Checkpoint], PreTrainedModel]


@dataclass(frozen=True)
class Scorer:
    """A model in one role: as it is, or with one of its adapters, or without them.

    Attributes:
        model: The model; the other role may have the same.
        role: Switches adapters for as long as it is entered.
    """

    model: PreTrainedModel
    role: Callable[[], AbstractContextManager[object]]

    def logps(
        self,
        sequences: Sequence[TokenSequence],
        batch_tokens: int,
        on_batch: Callable[[int], None] = lambda tokens: None,
    ) -> list[Logps]:
        """As `logprobs.token_logps`."""
        with self.role():
            return token_logps(self.model, sequences, batch_tokens=batch_tokens, on_batch=on_batch)

    def probe(self) -> Tensor:
        """Logits of two sequences that differ in their last token only, float32, ``(2, T, V)``."""
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
        ref: The reference.
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
        return self.oracle.logps(sequences, batch_tokens or self.batch_tokens, on_batch)

    def ref_logps(
        self,
        sequences: Sequence[TokenSequence],
        batch_tokens: int | None = None,
        on_batch: Callable[[int], None] = lambda tokens: None,
    ) -> list[Logps]:
        """Log-probs under the reference, see `logprobs.token_logps`."""
        return self.ref.logps(sequences, batch_tokens or self.batch_tokens, on_batch)


def load_pair(
    facts: PairFacts, *, dtype: Dtype = "float32", device: str = "auto", longest: int = sys.maxsize
) -> ModelPair:
    """Load the weights of oracle and reference; a base that both have only once.

    Args:
        facts: From `checkpoints.describe_pair`.
        dtype: What the models compute in, whatever they are stored in.
        device: ``auto`` (CUDA, else MPS, else CPU), or a torch device.
        longest: Most tokens of a sequence to score.

    Raises:
        ModelError: If weights are missing or broken, a model is not causal, or both are the same.
        SettingsError: If there is no such device.
    """
    place = _scoring_device(device, dtype)
    load = partial(load_base, dtype=getattr(torch, dtype), device=place)
    oracle, ref = facts.checkpoints
    shared = _load_shared(oracle, ref, load) if oracle.base.revision == ref.base.revision else None
    scorers = shared or (_load_alone(oracle, load), _load_alone(ref, load))
    probes = [scorer.probe() for scorer in scorers]
    for checkpoint, probe in zip(facts.checkpoints, probes, strict=True):
        _check_causal(checkpoint, probe)
    if torch.equal(*probes):  # also when other folders hold the same weights, or an adapter was never trained
        raise same_model(facts.oracle, facts.ref)
    if scorers[0].model is scorers[1].model:
        prepare(scorers[0].model, longest, [scorer.role for scorer in scorers])
    else:
        for scorer in scorers:
            prepare(scorer.model, longest)
    return ModelPair(*scorers, batch_tokens=_batch_tokens(place, dtype))


def load_scorer(
    checkpoint: Checkpoint, *, dtype: Dtype = "float32", device: str = "auto", longest: int = sys.maxsize
) -> tuple[Scorer, int]:
    """Load a single model to score, as `load_pair`, and say how many tokens suit a forward pass.

    Raises:
        ModelError: If weights are missing or broken, or the model is not causal.
        SettingsError: If there is no such device.
    """
    place = _scoring_device(device, dtype)
    scorer = _load_alone(checkpoint, partial(load_base, dtype=getattr(torch, dtype), device=place))
    _check_causal(checkpoint, scorer.probe())
    prepare(scorer.model, longest)
    return scorer, _batch_tokens(place, dtype)


def _scoring_device(name: str, dtype: Dtype) -> torch.device:
    place = _device(name)
    if place.type == "cuda" and dtype == "float32":
        # in a simulation of TF32 on CPU, selections of the top 30% overlapped with float32's by 0.98
        torch.set_float32_matmul_precision("high")
    return place


def _batch_tokens(place: torch.device, dtype: Dtype) -> int:
    return BATCH_TOKENS_CPU if place.type == "cpu" else BATCH_TOKENS_ACCELERATOR[dtype]


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.mps.is_available() else "cpu"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise SettingsError(f'device "{name}": {first_line(error)}. Pass --device auto.') from error


def load_base(checkpoint: Checkpoint, *, dtype: torch.dtype, device: torch.device | None) -> PreTrainedModel:
    """Load the weights of a checkpoint's base, in eval mode.

    Args:
        checkpoint: Where they are.
        dtype: What they are kept in, whatever they are stored in.
        device: Where to; None leaves it to whoever trains the model.

    Raises:
        ModelError: If weights are missing or broken.
    """
    base = checkpoint.base
    soft_caps = getattr(checkpoint.config.get_text_config(), "attn_logit_softcapping", None) is not None
    with errors_as(ModelError, base):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            base.location,
            revision=base.commit,
            dtype=dtype,  # transformers would take the dtype that the weights are stored in
            device_map=None if device is None else {"": device},
            attn_implementation="eager" if soft_caps else None,  # transformers 5.0: SDPA drops the caps
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    model: PreTrainedModel
    model, info = loaded
    if info["missing_keys"]:
        raise ModelError(
            f"{base.location}: its weights lack {min(info['missing_keys'])}, which would be random. "
            "Give a model that was saved as a causal language model."
        )
    torch.nn.Module.eval(model)
    return model


def _load_alone(checkpoint: Checkpoint, load: LoadBase) -> Scorer:
    model = load(checkpoint)
    if checkpoint.adapter is not None:
        model = attach(model, checkpoint.adapter, "default")
    return Scorer(model, nullcontext)


def _load_shared(oracle: Checkpoint, ref: Checkpoint, load: LoadBase) -> tuple[Scorer, Scorer] | None:
    """One base in both roles; None if an adapter has changed the base itself (biases, PiSSA)."""
    model: Any = load(oracle)
    untouched = Scorer(model, nullcontext).probe()
    for name, checkpoint in (("oracle", oracle), ("ref", ref)):
        if checkpoint.adapter is not None:
            model = attach(model, checkpoint.adapter, name)
    if not torch.equal(Scorer(model, model.disable_adapter).probe(), untouched):
        return None
    roles = [
        model.disable_adapter if checkpoint.adapter is None else partial(_adapter, model, name)
        for name, checkpoint in (("oracle", oracle), ("ref", ref))
    ]
    return Scorer(model, roles[0]), Scorer(model, roles[1])


def attach(model: Any, adapter: Snapshot, name: str, *, trainable: bool = False) -> Any:
    """Put an adapter on a model, or one more on a `PeftModel`; returns a `PeftModel` in eval mode."""
    from peft import PeftModel

    options: dict[str, Any] = {
        "adapter_name": name,
        "revision": adapter.commit,
        "autocast_adapter_dtype": trainable,  # what is trained is float32
        "is_trainable": trainable,
        "torch_device": str(model.device),
    }
    with errors_as(ModelError, adapter):
        if isinstance(model, PeftModel):
            model.load_adapter(adapter.location, **options)
        else:
            model = PeftModel.from_pretrained(model, adapter.location, **options)
    torch.nn.Module.eval(model)
    return model


@contextmanager
def _adapter(model: Any, name: str) -> Iterator[None]:
    model.set_adapter(name, inference_mode=True)
    yield


def _check_causal(checkpoint: Checkpoint, probe: Tensor) -> None:
    """A last token that changes what was predicted before it was seen: BERT and the like."""
    change = (probe[0] - probe[1]).abs().amax(-1)  # (T,)
    if change[:-1].max() > PROBE_LEAK * change[-1]:
        raise not_causal(checkpoint.base, checkpoint.config.model_type)
