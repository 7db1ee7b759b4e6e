"""Train reference (SFT), oracle (DPO) and policy (SePO): a thin loop around ``transformers.Trainer``."""

from .losses import dpo_loss, sepo_loss, sft_loss
from .settings import DpoSettings, SepoSettings, SftSettings
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
