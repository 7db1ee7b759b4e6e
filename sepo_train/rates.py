"""Learning rates known to work for the stage `sepo`.

With the rate that suits DPO, it moves several times as far in the same number of steps and
degenerates; with a quarter of that rate it does not (docs/evidence.md). Only two sizes are known: the
model measured there, and a billion parameters or more, for which the authors' scripts have one rate.
Between them the rate is interpolated on logarithmic axes, which was not measured.
"""

import logging
import math
from typing import TYPE_CHECKING

from .settings import TrainSettings

if TYPE_CHECKING:
    from torch import nn

log = logging.getLogger("sepo")

MEASURED = (2.6e5, 1e-4)  # parameters, rate: docs/evidence.md, a quarter of DPO's 4e-4
SCRIPTS = (1e9, 5e-7)
TOO_MUCH = 4.0


def suitable_rate(num_parameters: int) -> float:
    """The peak rate for ``sepo`` on all weights of a model of this size.

    Example:
        >>> f"{suitable_rate(7_000_000_000):.1g} {suitable_rate(135_000_000):.1g}"
        '5e-07 2e-06'
    """
    (small, high), (large, low) = MEASURED, SCRIPTS
    place = math.log(num_parameters / small) / math.log(large / small)
    return high * math.exp(min(1.0, max(0.0, place)) * math.log(low / high))


def warn_of_rate(stage: str, model: "nn.Module", settings: TrainSettings) -> None:
    """Warn if ``sepo`` trains all weights at a far higher rate; adapters need higher ones."""
    trained = sum(weights.numel() for weights in model.parameters() if weights.requires_grad)
    if stage != "sepo" or trained < sum(weights.numel() for weights in model.parameters()):
        return
    suitable = suitable_rate(trained)
    if settings.learning_rate > TOO_MUCH * suitable:
        log.warning(
            "`learning_rate=%g` is %.0f times the rate known to work for `sepo` at %s parameters: the "
            "model may collapse. Try %.1g, or let `max_kl` end the training in time.",
            settings.learning_rate,
            settings.learning_rate / suitable,
            f"{trained:,}",
            suitable,
        )
