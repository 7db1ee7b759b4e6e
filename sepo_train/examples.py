"""Training examples: sequences with weights, made from conversations, pairs or annotated rows."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from sepo_data.errors import PreferenceError
from sepo_data.projected.pairs import ProjectedSide
from sepo_data.rules.weights import PairWeight, margin_weight
from sepo_data.schema import SIDES
from sepo_data.tokens.chats import EncodedChat
from sepo_data.tokens.encoding import EncodedResponse
from sepo_data.tokens.pairs import EncodedPair
from sepo_data.tokens.tokenising import Ids

from .settings import TrainSettings

if TYPE_CHECKING:
    import datasets


@dataclass(frozen=True)
class WeightedSequence:
    """A sequence and the weights of its tokens.

    Attributes:
        input_ids: All token ids, ``(S,)``.
        positions: Positions of the response's tokens, ``(n,)``, increasing, all at least 1.
        weights: Their weights, ``(n,)``; at least one is positive.
        length: Number of tokens of the response, including those without weight.
    """

    input_ids: npt.NDArray[np.integer]
    positions: npt.NDArray[np.integer]
    weights: npt.NDArray[np.float32]
    length: int


@dataclass(frozen=True)
class Example:
    """The unit of the loss: a conversation or a pair.

    Attributes:
        row: Number of its row in the source.
        sequences: One, or the chosen and the rejected one.
        items: Its weight in the mean of a batch.
        ref_logps: For DPO, log-probs of the responses under the reference, in nats.
    """

    row: int
    sequences: tuple[WeightedSequence, ...]
    items: float = 1
    ref_logps: tuple[float, float] | None = None

    def __len__(self) -> int:
        """Number of tokens, for batches of similar lengths."""
        return sum(sequence.input_ids.size for sequence in self.sequences)


def selected_only(sequence: WeightedSequence, switches: Sequence[int] = ()) -> WeightedSequence:
    """Keep the tokens with weight, and cut everything after the last of them, which has no effect.

    Args:
        sequence: With all tokens of its response.
        switches: Lengths at which LongRoPE switches; a longer sequence keeps a token beyond, without weight.
    """
    kept = sequence.weights > 0
    for switch in switches:
        if sequence.positions[-1] > switch >= sequence.positions[kept][-1]:
            kept[np.searchsorted(sequence.positions, switch, side="right")] = True
    positions = sequence.positions[kept]
    seen = sequence.input_ids[: positions[-1] + 1]
    return replace(sequence, input_ids=seen, positions=positions, weights=sequence.weights[kept])


def drawn_rows(rows: "datasets.Dataset", settings: TrainSettings) -> "datasets.Dataset":
    """The requested share of the rows, drawn by the seed, in their original order."""
    return rows if settings.fraction == 1 else rows.select(drawn_numbers(len(rows), settings))


def drawn_numbers(num_rows: int, settings: TrainSettings) -> npt.NDArray[np.int64]:
    """The numbers of the rows that `drawn_rows` keeps."""
    number = max(1, round(settings.fraction * num_rows))
    return np.sort(np.random.default_rng((settings.seed, 0)).permutation(num_rows)[:number])


def conversation_example(chat: EncodedChat) -> Example:
    """All assistant turns of a conversation."""
    return Example(chat.row, (_whole(chat),), items=chat.positions.size)


def pair_example(pair: EncodedPair, weight: float = 1) -> Example:
    """All tokens of both responses, and the weight of the pair."""
    return Example(pair.row, (_whole(pair.chosen), _whole(pair.rejected)), items=weight)


def _whole(response: EncodedChat | EncodedResponse) -> WeightedSequence:
    return _compact(response.input_ids, response.positions, np.ones(response.positions.size, np.float32))


def pair_weights(rows: "datasets.Dataset", name: str, pair_weight: PairWeight) -> Callable[[int], float]:
    """The weight of a row's pair; ``name`` is the dataset in messages.

    Raises:
        PreferenceError: If it depends on the oracle's margin and the dataset has none.
    """
    if pair_weight == "equal":
        return lambda row: 1
    columns = [f"{side}_reward" for side in SIDES]
    if missing := [column for column in columns if column not in rows.column_names]:
        raise PreferenceError(
            f"{name}: no column {missing[0]}, so no margins. Annotate it with sepo-annotate, or leave "
            "out `pair_weight=margin`."
        )
    chosen, rejected = (np.asarray(rows[column][:], np.float64) for column in columns)
    return lambda row: margin_weight(chosen[row], rejected[row])


def key_tokens(side: ProjectedSide) -> WeightedSequence:
    """A projected response with the weights of its key tokens."""
    return _compact(side.input_ids, side.positions, side.weights)


def _compact(input_ids: Ids, positions: Ids, weights: npt.NDArray[np.float32]) -> WeightedSequence:
    """All examples are in memory at once, so token ids and positions take 32 bits each."""
    ids, places = input_ids.astype(np.int32), positions.astype(np.int32)
    return WeightedSequence(ids, places, weights, length=positions.size)


def hold_out(examples: Sequence[Example], settings: TrainSettings) -> tuple[list[Example], list[Example]]:
    """Training and held-out examples; the seed draws the prompts that are held out.

    Raises:
        PreferenceError: If none is left to train on.
    """
    wanted = max(1, round(settings.eval_fraction * len(examples))) if settings.eval_fraction else 0
    by_prompt: dict[bytes, list[int]] = {}  # pairs of one prompt are alike
    for i, example in enumerate(examples):
        sequence = example.sequences[0]
        by_prompt.setdefault(sequence.input_ids[: sequence.positions[0]].tobytes(), []).append(i)
    prompts = list(by_prompt.values())
    random = np.random.default_rng((settings.seed, 1))
    drawn: set[int] = set()
    for i in random.permutation(len(prompts)):
        if len(drawn) + len(prompts[i]) <= wanted:
            drawn.update(prompts[i])
    if not drawn:  # every prompt has more pairs than wanted
        drawn.update(random.permutation(len(examples))[:wanted].tolist())
    train = [example for i, example in enumerate(examples) if i not in drawn]
    if not train:
        raise PreferenceError(
            f"{len(examples)} rows and `eval_fraction={settings.eval_fraction}` leave none to train on."
        )
    return train, [examples[i] for i in sorted(drawn)]


def all_selected_only(example: Example, switches: Sequence[int] = ()) -> Example:
    """The example without unweighted tokens, see `selected_only`."""
    return replace(example, sequences=tuple(selected_only(one, switches) for one in example.sequences))
