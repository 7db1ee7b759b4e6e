"""Log-probs of the reference, computed once by the scorer of ``sepo-annotate`` and cached.

The reference of DPO is the initial model, so its log-probs never
change. They are kept in the cache of ``datasets`` under the hash of everything they
depend on: the model's content, the tokens, the precision. A second or resumed run
reads them.
"""

import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path
from uuid import uuid4

import datasets
import numpy as np
import numpy.typing as npt
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from transformers import TrainingArguments

from sepo_data.errors import OutputError, ScoringError, counted
from sepo_data.models.description import Description
from sepo_data.models.loading import Loading, load_scorer
from sepo_data.settings import Dtype

from .examples import Example

log = logging.getLogger("sepo")

Sums = npt.NDArray[np.float64]


def reference_logps(
    description: Description, examples: Sequence[Example], dtype: Dtype, arguments: TrainingArguments
) -> Sums:
    """Weighted sums of the log-probs of the chosen and the rejected responses of pairs under a model.

    They are computed in the precision of the training, so model and reference are equal
    at its start. Every process of a distributed run scores its share.

    Args:
        description: The reference.
        examples: Pairs; the weights of their tokens count.
        dtype: Weight dtype.
        arguments: The trainer's, for its compute dtype.

    Returns:
        In nats, ``(B, 2)``.

    Raises:
        ModelError: If the weights cannot be loaded.
        ScoringError: If a log-prob is not finite, or a sequence does not fit into memory.
        OutputError: If the cache cannot be written.
    """
    compute_dtype = torch.bfloat16 if arguments.bf16 else torch.float16 if arguments.fp16 else None
    identity = f"{description.checkpoint.revisions} {dtype} {compute_dtype}"
    path = Path(datasets.config.HF_DATASETS_CACHE) / "sepo" / f"ref-{_fingerprint(identity, examples)}.npy"
    kept = _read(path, len(examples))
    if all(gather_object([kept is not None])):  # across all machines
        log.info("using cached log-probs of the reference")
        assert kept is not None
        return kept
    log.info("scoring %s under the reference, once", counted(len(examples), "pair"))
    state = PartialState()
    own = examples[state.process_index :: state.num_processes]
    shares = gather_object([_score(description, own, dtype, compute_dtype, state.device)])
    found = np.empty((len(examples), 2))
    for rank, share in enumerate(shares):
        found[rank :: state.num_processes] = share
    if not np.isfinite(found).all():
        row = examples[int(np.flatnonzero(~np.isfinite(found).all(1))[0])].row
        raise ScoringError(
            f"row {row}: a log-probability under {description.checkpoint.facts.name} is not a finite number. "
            "Its weights are broken, or it needs more than 16 bits."
        )
    _keep(path, found)
    return found


def _score(
    description: Description,
    pairs: Sequence[Example],
    dtype: Dtype,
    compute_dtype: torch.dtype | None,
    device: torch.device,
) -> Sums:
    sequences = [sequence for pair in pairs for sequence in pair.sequences]
    longest = max((sequence.input_ids.size for sequence in sequences), default=0)
    scorer = load_scorer(description.checkpoint, Loading(dtype, str(device), longest))
    with torch.autocast(device.type, compute_dtype, enabled=compute_dtype is not None):
        logps, _ = scorer.checked_logps(sequences)
    each = zip(logps, sequences, strict=True)
    sums = [values.astype(np.float64) @ one.weights.astype(np.float64) for values, one in each]
    return np.array(sums, dtype=np.float64).reshape(-1, 2)


def _read(path: Path, num_pairs: int) -> Sums | None:
    """The cached log-probs; None if missing or damaged."""
    try:
        found: Sums = np.load(path)
    except (OSError, ValueError, EOFError):
        return None
    return found if found.shape == (num_pairs, 2) else None


def _keep(path: Path, values: Sums) -> None:
    partial = path.with_name(f"{path.name}.tmp.{uuid4().hex}")  # processes may share a cache
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            np.save(file, values)
        partial.replace(path)
    except OSError as error:
        raise OutputError(
            f"{path.parent} cannot be written ({error.strerror or error}). Set HF_DATASETS_CACHE to a folder "
            "with room."
        ) from error


def _fingerprint(identity: str, examples: Sequence[Example]) -> str:
    total = hashlib.sha256(identity.encode())
    for pair in examples:
        for sequence in pair.sequences:
            total.update(sequence.positions.tobytes() + sequence.input_ids.tobytes())
            total.update(sequence.weights.tobytes())
    return total.hexdigest()
