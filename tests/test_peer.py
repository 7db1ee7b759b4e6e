"""A differential test against `datasets` and TRL: equal token ids for randomly generated datasets.

Rows are drawn with column names, types, nesting and nulls. What `datasets` reads and `DPOTrainer` tokenises,
we read to the same ids, or leave out for a reason, or refuse in one line.
"""

import json
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import datasets
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from tiny_tokenizers import CHATML, tiny_tokenizer
from trl import DPOTrainer  # type: ignore[attr-defined]
from trl.data_utils import _tokenize

from sepo_data.errors import SepoError
from sepo_data.sources.conversations import open_chats
from sepo_data.sources.preferences import open_pairs
from sepo_data.tokens.chats import encode_chats
from sepo_data.tokens.encoder import response_encoder
from sepo_data.tokens.pairs import encode_pairs

LENGTH = 4096
WITH_CALLS = CHATML.replace("m['content'] +", "m['content'] + ((m.tool_calls or '') | tojson) +")
WITH_TOOLS = (
    "{% if tools %}{{ '<|im_start|>tools\n' + tools | tojson + '<|im_end|>\n' }}{% endif %}" + WITH_CALLS
)

WORDS = ["Paris", " Rome", "the capital", "\n\n", "x + 1", " é", "中文", "😀", "007", "None", "{}", "### "]
TEXT = st.one_of(
    st.lists(st.sampled_from(WORDS), min_size=1, max_size=4).map("".join),
    st.text(st.characters(codec="utf-8", exclude_characters="<\0"), max_size=8),
)
SPOKEN = TEXT.filter(lambda text: bool(text.strip()))
QUARTERS = st.integers(-8, 8).map(
    lambda number: number / 4
)  # the last digit of 4.49e-141 is lost by `datasets`
LEAVES = st.one_of(st.none(), st.booleans(), st.integers(-9, 9), QUARTERS, TEXT)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.sampled_from("abc"), inner, max_size=2)
    ),
    max_leaves=5,
)
# what means nothing; what means something, which may drop rows or stop the run
UNKNOWN = ["id", "meta", "tags", "source", "chosen_model", "notes"]
KNOWN = [
    "score_chosen",
    "score_rejected",
    "label",
    "margin",
    "is_tie",
    "images",
    "truncated",
    "messages",
    "rank",
]
ARGUMENTS = st.dictionaries(st.sampled_from("abc"), VALUES, max_size=3)
CALLS = st.lists(
    st.fixed_dictionaries(
        {"function": st.fixed_dictionaries({"name": st.sampled_from("fg"), "arguments": ARGUMENTS})},
        optional={"id": st.one_of(st.none(), TEXT), "type": st.just("function")},
    ),
    min_size=1,
    max_size=2,
)
TOOL = {"type": "function", "function": {"name": "f", "description": "", "parameters": {"type": "object"}}}


class Drawn(NamedTuple):
    """Rows of a dataset, and whether all of them must be kept."""

    rows: list[dict[str, Any]]
    plain: bool
    template: str | None


def message(role: str, content: Any, more: dict[str, Any]) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


@st.composite
def turns(draw: st.DrawFn, spoken: st.SearchStrategy[Any]) -> list[dict[str, Any]]:
    """A prompt: perhaps a system turn, and one to three exchanges without the last answer."""
    more = st.fixed_dictionaries({}, optional={"name": st.one_of(st.none(), TEXT), "tool_calls": st.none()})
    found = [message("system", draw(spoken), draw(more))] if draw(st.booleans()) else []
    calling = st.one_of(more, st.fixed_dictionaries({"tool_calls": CALLS}))
    for _ in range(draw(st.integers(0, 2))):
        asked = message("user", draw(spoken), draw(more))
        found += [asked, message("assistant", draw(spoken), draw(calling))]
    return [*found, message("user", draw(spoken), draw(more))]


@st.composite
def preferences(draw: st.DrawFn) -> Drawn:
    """Pairs in one of the layouts, some with odd values, some with more columns."""
    layout = draw(st.sampled_from(["messages", "whole", "hybrid", "texts", "transcripts"]))
    odd = draw(st.integers(0, 3)) == 0
    spoken: st.SearchStrategy[Any] = st.one_of(SPOKEN, TEXT, st.none(), st.integers(0, 9)) if odd else SPOKEN
    columns = draw(st.lists(st.sampled_from(UNKNOWN), max_size=2, unique=True))
    known = draw(st.lists(st.sampled_from(KNOWN), max_size=2, unique=True)) if draw(st.booleans()) else []
    tools = draw(st.sampled_from([None, None, "list", "text"])) if layout in ("messages", "whole") else None
    rows, plain = [], not (odd or known)
    for i in range(draw(st.integers(1, 4))):
        chosen, rejected = draw(spoken), draw(spoken)
        plain &= chosen != rejected
        row: dict[str, Any] = {"prompt": draw(turns(spoken))}
        row |= {
            "chosen": [message("assistant", chosen, {})],
            "rejected": [message("assistant", rejected, {})],
        }
        if layout == "whole":
            prompt = row.pop("prompt")
            row = {side: [*prompt, *row[side]] for side in ("chosen", "rejected")}
        elif layout == "hybrid":
            asked = row["prompt"][-1]
            row = {
                **{side: [asked, *row[side]] for side in ("chosen", "rejected")},
                "prompt": asked["content"],
            }
        elif layout in ("texts", "transcripts"):
            row = {"prompt": draw(spoken), "chosen": chosen, "rejected": rejected}
        if layout == "transcripts":
            start = f"\n\nHuman: {row.pop('prompt')}\n\nAssistant: "
            row = {"chosen": start + str(chosen), "rejected": start + str(rejected)}
        given = draw(st.booleans()) or i == 0
        if tools is not None:
            row["tools"] = None if not given else [TOOL] if tools == "list" else json.dumps([TOOL])
        rows.append({**row, **{name: draw(VALUES) for name in [*columns, *known]}})
    texts = layout in ("texts", "transcripts")
    return Drawn(rows, plain, None if texts else WITH_TOOLS if tools else WITH_CALLS)


@st.composite
def conversations(draw: st.DrawFn) -> Drawn:
    """Conversations of a column ``messages``."""
    odd = draw(st.integers(0, 3)) == 0
    spoken = st.one_of(SPOKEN, TEXT, st.none()) if odd else SPOKEN
    columns = draw(st.lists(st.sampled_from(UNKNOWN), max_size=2, unique=True))
    rows = []
    for _ in range(draw(st.integers(1, 4))):
        chat = [*draw(turns(spoken)), message("assistant", draw(spoken), {})]
        rows.append({"messages": chat, **{name: draw(VALUES) for name in columns}})
    return Drawn(rows, not odd, WITH_CALLS)


def theirs(path: Path, template: str | None, folder: str) -> list[dict[str, list[int]]] | None:
    """TRL's token ids, row by row; None if it or `datasets` refuses."""
    tokenizer = tiny_tokenizer("byte_bpe", template)
    try:
        rows = datasets.load_dataset("json", data_files=str(path), split="train", cache_dir=folder)
        if "messages" in rows.column_names and "chosen" not in rows.column_names:
            return [{"ids": _tokenize(tokenizer, row["messages"])["input_ids"]} for row in rows]
        trainer, options = SimpleNamespace(_tokenizer=tokenizer), SimpleNamespace(dataset_num_proc=None)
        made = DPOTrainer._prepare_dataset(trainer, rows, tokenizer, options, "train")  # type: ignore[arg-type]
        return [
            {side: [*row["prompt_ids"], *row[f"{side}_ids"]] for side in ("chosen", "rejected")}
            for row in made
        ]
    except Exception:  # whatever refuses a value of the wrong kind there
        return None


def ours(
    path: Path, template: str | None
) -> tuple[dict[int, dict[str, list[int]]], dict[str, list[int]], str]:
    """Our token ids by row, dropped rows by reason, and the reason if the dataset is refused."""
    encoder = response_encoder(tiny_tokenizer("byte_bpe", template))
    try:
        if path.name == "chats.jsonl":
            source, columns = open_chats(str(path))
            found = encode_chats(source.rows, columns, encoder, LENGTH, 0, len(source.rows))
            return {chat.row: {"ids": chat.input_ids.tolist()} for chat in found.chats}, found.dropped, ""
        source, pairs = open_pairs(str(path))
        made = encode_pairs(source.rows, pairs, encoder, LENGTH, 0, len(source.rows))
    except SepoError as error:
        return {}, {}, str(error)
    ids = {
        one.row: {side: one[side].input_ids.tolist() for side in ("chosen", "rejected")} for one in made.pairs
    }
    return ids, made.dropped, ""


def compare(drawn: Drawn, name: str) -> None:
    """Fail if both read a row differently."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder)
        path = Path(folder) / name
        path.write_text("".join(json.dumps(row) + "\n" for row in drawn.rows))
        right = theirs(path, drawn.template, folder)
        found, dropped, refused = ours(path, drawn.template)
        assert "\n" not in refused
        assert not (drawn.plain and refused), refused
        if drawn.plain:
            assert len(found) == len(drawn.rows), dropped
        if right is None:
            return
        for row, texts in found.items():
            for what, ids in texts.items():
                expected = right[row][what]
                assert ids == expected[: len(ids)], (drawn.rows[row], what)
                rest = str(tiny_tokenizer("byte_bpe").decode(expected[len(ids) :]))
                assert not rest.strip(), (drawn.rows[row], what)  # behind the end of the turn, blanks at most


QUICK = settings(
    max_examples=20,
    deadline=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@QUICK
@given(preferences())
def test_pairs_are_read_as_trl_reads_them(drawn: Drawn) -> None:
    compare(drawn, "pairs.jsonl")


@QUICK
@given(conversations())
def test_conversations_are_read_as_trl_reads_them(drawn: Drawn) -> None:
    compare(drawn, "chats.jsonl")


@pytest.mark.slow
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(preferences())
def test_many_pairs(drawn: Drawn) -> None:
    compare(drawn, "pairs.jsonl")


@pytest.mark.slow
@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
@given(conversations())
def test_many_conversations(drawn: Drawn) -> None:
    compare(drawn, "chats.jsonl")
