"""Train reference (SFT), oracle (DPO) and policy (SePO): a thin loop around ``transformers.Trainer``."""

from importlib import import_module
from typing import TYPE_CHECKING

from .settings import DpoSettings, SepoSettings, SftSettings

if TYPE_CHECKING:
    from .losses import dpo_loss, sepo_loss, sft_loss
    from .stages import train_dpo, train_sepo, train_sft
    from .training import TrainReport

__all__ = [
    "DpoSettings",
    "SepoSettings",
    "SftSettings",
    "TrainReport",
    "dpo_loss",
    "sepo_loss",
    "sft_loss",
    "train_dpo",
    "train_sepo",
    "train_sft",
]

_MODULES = {
    "TrainReport": "training",
    "dpo_loss": "losses",
    "sepo_loss": "losses",
    "sft_loss": "losses",
    "train_dpo": "stages",
    "train_sepo": "stages",
    "train_sft": "stages",
}


def __getattr__(name: str) -> object:
    """Import what needs torch on demand: commands read the settings for ``--help``."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULES[name]}", __name__), name)
