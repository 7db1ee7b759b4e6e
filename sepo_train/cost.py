"""What a training costs, in tokens and seconds, over all of its sessions."""

from collections.abc import Mapping, Sequence

import torch
from accelerate import Accelerator

COSTS = ("tokens", "trained_tokens", "seconds")  # read by the model; with loss; seconds of the steps alone


class Cost:
    """Adds up the costs of this process; the log has those of the whole run."""

    def __init__(self) -> None:
        self.taken = dict.fromkeys(COSTS, 0.0)  # since the last log

    def add(self, name: str, amount: float) -> None:
        """Add to one of `COSTS`."""
        self.taken[name] += amount

    def logged(self, history: Sequence[Mapping[str, float]], accelerator: Accelerator) -> dict[str, float]:
        """The costs so far, for the log, including those before an interruption; tokens of all processes."""
        counts = torch.tensor([int(self.taken[name]) for name in COSTS[:2]], device=accelerator.device)
        taken = [*accelerator.reduce(counts, "sum").tolist(), self.taken["seconds"]]
        self.taken = dict.fromkeys(COSTS, 0.0)
        before = next((entry for entry in reversed(history) if "cost/tokens" in entry), {})
        return {
            f"cost/{name}": value + before.get(f"cost/{name}", 0)
            for name, value in zip(COSTS, taken, strict=True)
        }
