"""Score a sample of an annotated dataset again, to verify its rewards.

Anyone with the models can verify a published dataset on a few rows, on
another machine or in another precision.
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from .annotated.annotations import Annotation, read_annotations
from .annotated.manifest import Manifest, ModelFacts
from .annotated.opening import open_annotated
from .annotated.selecting import rule_masks, source_rows, stored_rewards, with_end
from .errors import SettingsError
from .models.checkpoints import NO_TRUST, Trust
from .models.description import PairFacts, describe_pair
from .models.loading import Loading
from .models.placement import load_sequentially
from .models.scoring import Scores, score_once
from .projection import partition
from .schema import SIDES, Sides
from .settings import Dtype
from .sources.preferences import annotated_columns
from .tokens.encoder import response_encoder
from .tokens.encoding import EncodedResponse
from .tokens.pairs import EncodedPair, encode_pairs
from .tokens.templates import read_chat_template

log = logging.getLogger("sepo")

ROUNDING = 0.01  # nats, root mean square: four times what TF32 makes, docs/float32.md
NOISES = 3.0  # times the noise that a lower-precision run measured on itself: this machine rounds, too


@dataclass(frozen=True)
class Verification:
    """The result of scoring rows again.

    Attributes:
        rows: Rows of the sample.
        moved: Those whose tokens or end of turn are elsewhere now, because of another tokenizer,
            template or maximum length. They are not compared further.
        tokens: Tokens that were compared, the ends of turns included.
        largest_difference: Of a token's reward, in nats.
        noise: Root mean square of the differences, in nats.
        tolerance: The noise that rounding explains, in nats: 0.01, or three times what the dataset's
            own run in less than float32 found.
        equal_masks: Share of the mask entries that are the same.
        by_rule: Share of the dataset's mask entries that its rule gives for its own rewards.
    """

    rows: int
    moved: int
    tokens: int
    largest_difference: float
    noise: float
    tolerance: float
    equal_masks: float
    by_rule: float

    @property
    def holds(self) -> bool:
        """Whether the models reproduce the rewards, and the rule the masks."""
        return not self.moved and self.noise <= self.tolerance and self.by_rule == 1


def verify(
    dataset: str,
    oracle: str | None = None,
    ref: str | None = None,
    *,
    revision: str | None = None,
    num_rows: int = 32,
    dtype: Dtype | None = None,
    device: str = "auto",
    trust: Trust = NO_TRUST,
    chat_template: Path | None = None,
) -> Verification:
    """Score rows of an annotated dataset again, and compare.

    Args:
        dataset: Folder or Hub id of an annotated dataset.
        oracle: The oracle, Hub id or folder; None: the one on the Hub that the manifest names.
        ref: The reference, as above.
        revision: Branch, tag or commit of a dataset on the Hub.
        num_rows: Rows of the sample, evenly spread.
        dtype: Compute dtype; None: that of the annotation.
        device: As for `settings.AnnotateSettings`.
        trust: Which of the models' files may run code.
        chat_template: The Jinja file that the dataset was annotated with, if it was one.

    Raises:
        SepoError: One of its children, see `errors`.
    """
    annotated = open_annotated(dataset, revision=revision)
    made, rows = annotated.manifest, next(iter(annotated.splits.values()))
    numbers = source_rows(made, len(rows), dataset)
    facts = _describe(made, oracle, ref, trust)
    scoring = made.scoring
    how = Loading(dtype or scoring.dtype, device, scoring.max_length)
    places = np.unique(np.linspace(0, len(rows) - 1, num=min(num_rows, len(rows))).astype(int))
    sample = rows.select(places.tolist())
    if chat_template is not None:
        read_chat_template(facts.tokenizer, chat_template)
    encoder = response_encoder(facts.tokenizer, chat_template=scoring.chat_template_sha256 is not None)
    encoded = encode_pairs(
        sample,
        annotated_columns(sample.column_names),
        encoder,
        how.longest,
        0,
        len(sample),
        scoring.reasoning,
    )
    stored = read_annotations(sample.with_format("arrow")[:])
    ended_alike = [_ended_as(pair, stored[pair.row]) for pair in encoded.pairs]
    pairs = [pair for pair in ended_alike if all(map(_lies_as, pair, stored[pair.row]))]
    moved = len(sample) - len(pairs)
    if not pairs:
        return Verification(len(sample), moved, 0, *5 * [math.nan])
    in_turn = load_sequentially(facts, how.dtype, how.place)
    scores = score_once(facts, how, pairs, None, in_turn=in_turn)
    table = sample.select([pair.row for pair in pairs]).with_format("arrow")[:]
    in_source = [int(numbers[places[pair.row]]) for pair in pairs]
    annotations = [stored[pair.row] for pair in pairs]
    return _compared(table, annotations, scores, made, in_source, moved)


def _compared(
    table: pa.Table,
    annotations: Sequence[Sides[Annotation]],
    scores: Scores,
    made: Manifest,
    in_source: list[int],
    moved: int,
) -> Verification:
    """Stored rewards of rows next to those scored now.

    Args:
        table: The rows whose tokens lie as they did.
        annotations: What the dataset holds of them.
        scores: What the models give now.
        made: How the dataset was made.
        in_source: The rows' numbers there, on which a random selection depends.
        moved: How many rows of the sample are left out.
    """
    given, found, masks, by_rule, again = [], [], [], [], []
    for side in SIDES:
        of_side = [annotation[side] for annotation in annotations]
        rewards = [stored_rewards(one) for one in of_side]
        given += rewards
        found += scores[side].rewards
        masks += [with_end(one.token_mask, one.eos_mask) for one in of_side]
        by_rule += rule_masks(table, side, rewards, made.selection, in_source)
        again += rule_masks(table, side, scores[side].rewards, made.selection, in_source)
    off, mask = np.concatenate(found) - np.concatenate(given), np.concatenate(masks)
    return Verification(
        rows=len(annotations) + moved,
        moved=moved,
        tokens=off.size,
        largest_difference=float(np.abs(off).max()),
        noise=float(np.sqrt(np.square(off).mean())),
        tolerance=max(ROUNDING, NOISES * made.precision.noise if made.precision else 0.0),
        equal_masks=float((np.concatenate(again) == mask).mean()),
        by_rule=float((np.concatenate(by_rule) == mask).mean()),
    )


def _describe(made: Manifest, oracle: str | None, ref: str | None, trust: Trust) -> PairFacts:
    """The models, with a warning if they differ from those that made the dataset."""
    given = {"oracle": (made.oracle, oracle), "ref": (made.ref, ref)}
    if local := [role for role, (facts, name) in given.items() if name is None and _is_local(facts)]:
        names = " and ".join(f"{given[role][0].name} as `{role}`" for role in local)
        raise SettingsError(f"the dataset's models were folders, so pass them: {names}.")
    oracle, oracle_revision = _where(made.oracle, oracle)
    ref, ref_revision = _where(made.ref, ref)
    pair = describe_pair(oracle, ref, oracle_revision=oracle_revision, ref_revision=ref_revision, trust=trust)
    for role, was, now in (("oracle", made.oracle, pair.oracle), ("ref", made.ref, pair.ref)):
        if (now.revision, now.base) != (was.revision, was.base):
            log.warning("the dataset's %s is %s, this is %s", role, _named(was), _named(now))
    return pair


def _is_local(facts: ModelFacts) -> bool:
    return facts.revision.startswith("sha256:")


def _where(facts: ModelFacts, given: str | None) -> tuple[str, str | None]:
    """Name and revision of a model, from the user or from the manifest."""
    return (facts.name, facts.revision) if given is None else (given, None)


def _named(facts: ModelFacts) -> str:
    return f"{facts.name}@{facts.revision[:19]}" + (f" on {facts.base}" if facts.base else "")


def _ended_as(pair: EncodedPair, stored: Sides[Annotation]) -> EncodedPair:
    """The pair without the ends of turn that the dataset lacks because responses were cut."""
    chosen, rejected = (
        response if annotation.eos_reward is not None else response.without_end()
        for response, annotation in zip(pair, stored, strict=True)
    )
    return replace(pair, chosen=chosen, rejected=rejected)


def _lies_as(response: EncodedResponse, annotation: Annotation) -> bool:
    """Whether a response's tokens, and the end of its turn, are where the dataset has them."""
    bounds = partition(response.token_start, response.token_end)
    pieces = [mine[:3] for mine in annotation.pieces] == [piece[:3] for piece in response.pieces]
    return (
        pieces
        and np.array_equal(bounds, annotation.bounds)
        and response.ended == (annotation.eos_reward is not None)
    )
