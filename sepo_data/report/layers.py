"""Lines of tokens below the oracle's: a policy's tokens, or another annotation of the same pairs."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..annotated.annotations import ROWS_AT_ONCE
from ..annotated.opening import Annotated, open_annotated
from ..comparison import compare_annotations, pair_keys, pair_places
from ..errors import SchemaError
from ..projected.pairs import ProjectedPair, ProjectedRows
from ..projected.transfer import Transfer, transfer_report
from ..schema import PAIR_COLUMNS, SIDES
from ..settings import ProjectionSettings
from .rows import StoredRow, StoredSides, projected_side, stored_rows

if TYPE_CHECKING:
    import datasets

    from ..tokens.encoder import ResponseEncoder

_SHARES = (
    ("selected", "selected tokens"),
    ("one_to_one", "tokens that are one of the oracle's"),
    ("merged", "tokens that merge several"),
    ("split", "tokens that are part of one"),
    ("crossing", "tokens that cross its bounds"),
    ("recall", "selected text that is kept"),
    ("iou", "selected text, overlap over union"),
    ("reward_cut", "|reward| cut off"),
    ("without_reward", "tokens without a reward"),
)


@dataclass(frozen=True)
class Layer:
    """One more line of tokens under each response.

    Attributes:
        name: Label of the line in a row.
        title: Heading of its section.
        summary: Figures of all rows, in sentences.
        figures: Name of each figure and its values for chosen and rejected responses, as text.
        rows: Stored sides by row number, see `rows.stored_rows`; some rows may be missing.
        warnings: Warnings for the user.
    """

    name: str
    title: str
    summary: str
    figures: list[tuple[str, str, str]]
    rows: dict[int, StoredSides]
    warnings: list[str] = field(default_factory=list)


def policy_encoder(
    tokenizer: str, rows: "datasets.Dataset", *, trust_remote_code: bool = False
) -> tuple["ResponseEncoder", int | None]:
    """Load a policy's tokenizer, prepared as for training, and the policy's context length.

    Args:
        tokenizer: Hub id or folder of a model or tokenizer.
        rows: Rows to encode.
        trust_remote_code: Run Python code that comes with the tokenizer.
    """
    from ..models.checkpoints import Trust
    from ..models.description import load_tokenizer  # loads transformers
    from ..tokens.encoder import response_encoder
    from ..tokens.templates import set_chat_template

    policy, context = load_tokenizer(tokenizer, trust=Trust(remote_code=trust_remote_code))
    schema = rows.select_columns([*PAIR_COLUMNS]).features.arrow_schema
    set_chat_template(policy, True, schema, tokenizer)
    return response_encoder(policy), context


def policy_layer(
    annotated: Annotated, numbers: Sequence[int], tokenizer: str, *, trust_remote_code: bool = False
) -> Layer:
    """The tokens of a policy with their projected rewards.

    Args:
        annotated: The dataset.
        numbers: Numbers of the rows to show; the figures cover all rows.
        tokenizer: See `policy_encoder`.
        trust_remote_code: See `policy_encoder`.
    """
    rows = next(iter(annotated.splits.values()))
    encoder, reads = policy_encoder(tokenizer, rows, trust_remote_code=trust_remote_code)
    settings = ProjectionSettings(annotated.manifest.selection)
    most = min(settings.max_length, reads or settings.max_length)
    wanted, shown = set(numbers), dict[int, ProjectedPair]()

    def keep(found: ProjectedRows) -> None:
        shown.update((pair.row, pair) for pair in found.pairs if pair.row in wanted)

    settings = ProjectionSettings(annotated.manifest.selection, max_length=most)
    transfer = transfer_report(rows, encoder, settings, keep)
    name = tokenizer.rstrip("/").split("/")[-1]
    return Layer(
        name=name,
        title=f"On the tokens of {name}",
        summary=f"{transfer.pairs:,} of {transfer.rows:,} rows can be trained on"
        + "".join(f"; {count:,} {reason}" for reason, count in transfer.dropped.items()),
        figures=_transferred(transfer),
        rows={
            number: {
                "chosen": projected_side(rows[number]["chosen"], pair.chosen),
                "rejected": projected_side(rows[number]["rejected"], pair.rejected),
            }
            for number, pair in shown.items()
        },
        warnings=transfer.warnings(by_policy=most == reads),
    )


def against_layer(annotated: Annotated, numbers: Sequence[int], other: str) -> Layer:
    """Another annotation of the same pairs.

    Args:
        annotated: The dataset.
        numbers: Numbers of the rows to show; the figures cover all rows.
        other: Hub id or folder of the other dataset.

    Raises:
        SchemaError: If the two have no pair in common.
    """
    theirs = open_annotated(other)
    first, second = (next(iter(each.splits.values())) for each in (annotated, theirs))
    try:
        found = compare_annotations(first, second)
    except SchemaError as error:
        raise SchemaError(f"{other}: {error}") from error
    places = _places_of(first, second, numbers)
    stored = stored_rows(second, list(places.values()))
    right = " and ".join(f"{accuracy:.1%}" for accuracy in found.accuracies)
    figures = [
        (what, f"{getattr(found.chosen, name):{form}}", f"{getattr(found.rejected, name):{form}}")
        for what, name, form in (
            ("rank correlation of the token rewards", "rank_correlation", "+.3f"),
            ("selected text, overlap over union", "mask_overlap", ".1%"),
            ("responses with the same tokens", "same_tokens", ".1%"),
        )
    ]
    return Layer(
        name=theirs.name,
        title=f"Against {theirs.name}",
        summary=f"{found.pairs:,} pairs in both; {found.only_first:,} only here, {found.only_second:,} only "
        f"there. Reward accuracy {right}; the two agree on the order of {found.agreement:.1%} of the pairs",
        figures=figures,
        rows=dict(zip(places, stored, strict=True)),
    )


def _places_of(
    first: "datasets.Dataset", second: "datasets.Dataset", numbers: Iterable[int]
) -> dict[int, int]:
    """Find the pairs of these rows in the second dataset, leaving out missing ones."""
    places, wanted, number, found = pair_places(second), set(numbers), 0, dict[int, int]()
    for table in first.with_format("arrow").iter(ROWS_AT_ONCE):
        for key in pair_keys(table):
            if places.get(key):  # repeated pairs are matched in order
                place = places[key].popleft()
                if number in wanted:
                    found[number] = place
            number += 1
    return found


def add_layers(rows: Sequence[StoredRow], layers: Sequence[Layer]) -> None:
    """Add the layers to the stored rows of a page."""
    for row in rows:
        for side in SIDES:
            row[side]["layers"] = [
                {**layer.rows[row["row"]][side], "layer": layer.name}
                for layer in layers
                if row["row"] in layer.rows
            ]


def _transferred(transfer: Transfer) -> list[tuple[str, str, str]]:
    def both(values: Mapping[str, str]) -> tuple[str, str]:
        return values["chosen"], values["rejected"]

    found = [("tokens", *both({name: f"{transfer[name].tokens:,}" for name in SIDES}))]
    for name, what in _SHARES:
        found.append((what, *both({side: f"{getattr(transfer[side], name):.1%}" for side in SIDES})))
    return found
