"""Load the weights of a checkpoint's base, complete and without extras, or refuse them."""

import json
import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging as transformers_logging
from transformers.utils.hub import cached_file

from ..errors import ModelError
from .checkpoints import CONFIG, WEIGHTS, Checkpoint, Snapshot, errors_as, shards

log = logging.getLogger("sepo")


def load_base(
    checkpoint: Checkpoint, *, dtype: torch.dtype, device_map: dict[str, torch.device] | str | None
) -> PreTrainedModel:
    """Load the weights of a checkpoint's base, in eval mode.

    Args:
        checkpoint: The checkpoint.
        dtype: Dtype in memory, whatever the stored dtype.
        device_map: Placement; None leaves it to the trainer.

    Raises:
        ModelError: If weights are missing or broken.
    """
    base = checkpoint.base
    with _suggest_full_precision(checkpoint), errors_as(ModelError, base), _quiet_report():
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            base.location,
            revision=base.commit,
            dtype=dtype,  # transformers would take the dtype that the weights are stored in
            device_map=device_map,
            use_safetensors=not checkpoint.pickled,
            trust_remote_code=checkpoint.trust.remote_code,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # to name the first one
        )
    model: PreTrainedModel
    model, info = loaded
    _check_landed(base, info)
    _check_stored(checkpoint)
    if checkpoint.vocabulary != int(checkpoint.config.get_text_config().vocab_size):
        model.resize_token_embeddings(checkpoint.vocabulary, mean_resizing=False)
    torch.nn.Module.eval(model)
    return model


@contextmanager
def _suggest_full_precision(checkpoint: Checkpoint) -> Iterator[None]:
    """Where quantised weights cannot be loaded, name the model that they were made from."""
    try:
        yield
    except ModelError as error:
        if getattr(checkpoint.config, "quantization_config", None) is None:
            raise
        base = checkpoint.base
        path = cached_file(base.location, CONFIG, revision=base.commit)
        named = str(json.loads(Path(str(path)).read_text()).get("_name_or_path"))
        known = re.fullmatch(r"[\w.-]+/[\w.-]+", named) and not re.search(r"bit|gptq|awq|quant", named, re.I)
        full = f"{named}, the model in full precision" if known else "the model in full precision"
        problem = f"{str(error).rstrip('.')}. Its weights are quantised, and so would the rewards be"
        raise ModelError(f"{problem}: pass {full}.") from error


# not needed: buffers of older versions, heads of reward models, other modalities
_SPARE = re.compile(
    r"inv_freq$|masked_bias$|attn\.bias$|^v(alue)?_head\.|vision|visual|image|audio|multi_modal|mtp\."
)


def _check_landed(base: Snapshot, info: Mapping[str, Any]) -> None:
    """Check that every weight in the files belongs to the model, and that the model lacks none."""
    for key, stored, wanted in sorted(info["mismatched_keys"]):
        if 0 in stored:
            problem = f"{key} is empty: the model was saved under ZeRO-3 without its weights"
            raise ModelError(f"{base.location}: {problem}. Gather them with zero_to_fp32.py.")
        problem = f"{key} has the size {list(stored)}, config.json says {list(wanted)}"
        raise ModelError(f"{base.location}: {problem}. Take the config.json that belongs to the weights.")
    unexpected = sorted(key for key in info["unexpected_keys"] if not _SPARE.search(key))
    if unexpected and all(key.startswith("_orig_mod.") for key in unexpected):
        problem = "all its weights begin with _orig_mod., as torch.compile names them"
        raise ModelError(f"{base.location}: {problem}. Save model._orig_mod instead of the compiled model.")
    if info["missing_keys"]:
        raise ModelError(
            f"{base.location}: its weights lack {min(info['missing_keys'])}, which would be random. "
            "Give a model that was saved as a causal language model."
        )
    if unexpected:
        problem = (
            f"it holds {unexpected[0]}, for which config.json has no place ({len(unexpected)} such weights)"
        )
        raise ModelError(f"{base.location}: {problem}. Take the config.json that belongs to the weights.")


def _check_stored(checkpoint: Checkpoint) -> None:
    """Refuse weights that are the integers of a quantisation that config.json does not tell of."""
    base = checkpoint.base
    if checkpoint.pickled or getattr(checkpoint.config, "quantization_config", None) is not None:
        return
    for file in [WEIGHTS[0]] if WEIGHTS[0] in base.files else sorted(shards(base, WEIGHTS[1])):
        path = cached_file(base.location, file, revision=base.commit)
        with safe_open(str(path), "pt") as weights:
            stored = {key: weights.get_slice(key).get_dtype() for key in weights.keys()}  # noqa: SIM118
        rounded = next((key for key, dtype in stored.items() if _is_rounded(key, dtype)), None)
        if rounded is None:
            continue
        problem = f"{rounded} is stored as {stored[rounded]}, and config.json has no quantization_config"
        if stored[rounded].startswith("F"):
            log.warning("%s: %s: the rewards are those of rounded weights", base.location, problem)
            return
        raise ModelError(f"{base.location}: {problem}. Give the model in full precision.")


def _is_rounded(key: str, dtype: str) -> bool:
    return key.endswith(".weight") and dtype not in ("F64", "F32", "F16", "BF16")


@contextmanager
def _quiet_report() -> Iterator[None]:
    """Silence transformers' table of what `_check_landed` reports in one line."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
