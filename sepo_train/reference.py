"""Log-probs of the reference, taken once by the scorer of ``sepo-annotate`` and kept.

The reference of DPO is the model that the training starts from, so its log-probs never
change. They are kept in the cache of ``datasets`` under the hash of everything that they
depend on: the model's content, the tokens. A second run, or one that goes on,
reads them.
"""

import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path

import datasets
import numpy as np
import numpy.typing as npt
from accelerate import PartialState

from sepo_data.checkpoints import Description
from sepo_data.errors import OutputError
from sepo_data.models import load_scorer
from sepo_data.shards import renamed

from .batches import Example

log = logging.getLogger("sepo")


def reference_logps(description: Description, examples: Sequence[Example]) -> list[tuple[float, float]]:
    """Log-probs of the chosen and the rejected responses of pairs under a model, in nats.

    Every process of a distributed run scores its own share, and reads those of the others.

    Args:
        description: The reference.
        examples: Pairs; all positions of their sequences are scored.

    Raises:
        ModelError: If the weights cannot be loaded.
        ScoringError: If a sequence does not fit into memory.
    """
    state = PartialState()
    folder = Path(datasets.config.HF_DATASETS_CACHE) / "sepo" / f"ref-{_fingerprint(description, examples)}"
    parts = [folder / f"part-{rank}-of-{state.num_processes}.npy" for rank in range(state.num_processes)]
    own = parts[state.process_index]
    if own.exists():
        log.info("log-probs of the reference are in the cache")
    else:
        log.info("scoring %s pairs under the reference, once", f"{len(examples):,}")
        mine = examples[state.process_index :: state.num_processes]
        scorer, batch_tokens = load_scorer(description.checkpoint, device=str(state.device))
        sequences = [sequence for pair in mine for sequence in pair.sequences]
        sums = [logps.sum(dtype=np.float64) for logps in scorer.logps(sequences, batch_tokens)]
        _keep(own, np.array(sums))
    state.wait_for_everyone()
    found = np.empty((len(examples), 2))
    for rank, part in enumerate(parts):
        found[rank :: state.num_processes] = np.load(part).reshape(-1, 2)
    return [(float(chosen), float(rejected)) for chosen, rejected in found]


def _keep(path: Path, values: npt.NDArray[np.float64]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with renamed(path) as partial, partial.open("wb") as file:
            np.save(file, values)
    except OSError as error:
        raise OutputError(
            f"{path.parent} cannot be written ({error.strerror or error}). Set HF_DATASETS_CACHE to a folder "
            "with room."
        ) from error


def _fingerprint(description: Description, examples: Sequence[Example]) -> str:
    total = hashlib.sha256(repr(description.checkpoint.revisions).encode())
    for pair in examples:
        for sequence in pair.sequences:
            total.update(sequence.positions.tobytes() + sequence.input_ids.tobytes())
    return total.hexdigest()
