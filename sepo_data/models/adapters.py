"""PEFT adapters on a base model: loaded completely, or refused naming the first weights that do not fit."""

import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import ModelError, counted
from .checkpoints import Snapshot, errors_as

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

_SIZES = re.compile(r"size mismatch for (\S+): .*?torch\.Size\((.*?)\).*?torch\.Size\((.*?)\)", re.DOTALL)


def attach(
    model: "PreTrainedModel | PeftModel", adapter: Snapshot, name: str, *, trainable: bool = False
) -> Any:
    """Add an adapter to a model or to a `PeftModel`; returns a `PeftModel` in eval mode.

    Raises:
        ModelError: If it cannot be read, does not fit the model, or lacks weights.
    """
    from peft import PeftModel

    options: dict[str, Any] = {
        "adapter_name": name,
        "revision": adapter.commit,
        "autocast_adapter_dtype": trainable,  # trained weights are float32
        "is_trainable": trainable,
        "torch_device": str(model.device),
    }
    with _sizes_named(adapter), errors_as(ModelError, adapter), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Found missing adapter keys")  # see `_check_landed`
        if isinstance(model, PeftModel):
            model.load_adapter(adapter.location, **options)
        else:
            model = PeftModel.from_pretrained(model, adapter.location, **options)
        _check_landed(model, adapter, name)
    torch.nn.Module.eval(model)
    return model


@contextmanager
def switched_to(model: "PeftModel", name: str) -> Iterator[None]:
    """Make one of a model's adapters the active one."""
    model.set_adapter(name, inference_mode=True)
    yield


def _check_landed(model: "PeftModel", adapter: Snapshot, name: str) -> None:
    """Load the weights once more to check them: peft discards its report of the first time."""
    from peft import load_peft_weights, set_peft_model_state_dict

    weights = load_peft_weights(adapter.location, device="cpu", revision=adapter.commit)
    result: Any = set_peft_model_state_dict(model, weights, adapter_name=name)
    placed: dict[str, Tensor] = model.state_dict(keep_vars=True)
    filled = {place.data_ptr() for key, place in placed.items() if key not in result.missing_keys}
    filled.discard(0)  # the address of weights that accelerate has moved to disk
    missing = sorted(
        key
        for key in result.missing_keys
        if f".{name}." in f"{key}."
        and placed[key].data_ptr() not in filled  # tied weights and VeRA's are saved only once
        and not key.endswith(f".ranknum.{name}")  # AdaLoRA's follow from its configuration
    )
    missing += sorted(_biases_of(model, name) - weights.keys())
    unexpected = sorted(key for key in result.unexpected_keys if not _saved_twice(key, weights))
    if not missing and not unexpected:
        return
    problems = []
    if unexpected:
        problems.append(
            f"{len(unexpected)} of its {len(weights)} weights have no place, like {unexpected[0]}"
        )
    if missing:
        places = counted(len(missing), "place")
        problems.append(f"{places} without weights, like {missing[0].replace(f'.{name}', '')}")
    raise _DoesNotFitError(
        f"the adapter does not fit its base: {'; '.join(problems)}. Set base_model_name_or_path in "
        "adapter_config.json to the model that it was trained on, or save the adapter again."
    )


def _biases_of(model: "PeftModel", name: str) -> set[str]:
    """The biases that an adapter must bring along: their places are the base's, so peft misses none."""
    from peft import get_peft_model_state_dict

    if getattr(model.peft_config[name], "bias", "none") == "none":
        return set()
    saved = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    return {key for key in saved if key.endswith(".bias")}


def _saved_twice(key: str, weights: Mapping[str, object]) -> bool:
    """Whether peft saves a weight under a second name, as for enlarged embeddings, and reads that one."""
    other = key.replace(".modules_to_save", "")
    return other != key and other in weights


class _DoesNotFitError(Exception):
    """The one line of the problem."""


@contextmanager
def _sizes_named(adapter: Snapshot) -> Iterator[None]:
    """Name the first weight of a wrong size in the error, instead of torch's heading."""
    try:
        yield
    except ModelError as error:
        if found := _SIZES.search(str(error.__cause__)):
            key, theirs, ours = found.groups()
            problem = f"the adapter does not fit its base: {key} has the size {theirs}, its place {ours}"
            raise ModelError(
                f"{adapter.location}: {problem}. Set base_model_name_or_path in adapter_config.json to the "
                "model that it was trained on."
            ) from error
        raise
