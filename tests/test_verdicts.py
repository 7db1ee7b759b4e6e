"""Tests of columns that decide which response is better, and of pairs made of several answers."""

import math
import random
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny_pair import write_jsonl

from sepo_data.dataset_spec import DatasetSpec
from sepo_data.errors import PreferenceError
from sepo_data.reasons import Reason, Unusable
from sepo_data.sources.answers import SMALL, TIES
from sepo_data.sources.conversations import Chat, open_chats
from sepo_data.sources.opening import Source
from sepo_data.sources.preferences import Pair, PairColumns, open_pairs

Row = dict[str, Any]
GOOD_BAD = Pair("Hi", "good", "bad")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def opened(folder: Path, *rows: Row, **options: Any) -> tuple[Source, PairColumns]:
    return open_pairs(write_jsonl(folder / "rows.jsonl", list(rows)), DatasetSpec(**options))


def text(side: str | list[Row]) -> Any:
    return side if isinstance(side, str) else side[-1]["content"]


def pairs(folder: Path, *rows: Row, **options: Any) -> list[Any]:
    """Both responses of every row, or the reason why it has none."""
    source, columns = opened(folder, *rows, **options)
    found = map(columns.read, source.rows)
    return [
        pair.reason if isinstance(pair, Unusable) else (text(pair.chosen), text(pair.rejected))
        for pair in found
    ]


def ab(first: Any, second: Any, names: tuple[str, str] = ("response_a", "response_b"), **more: Any) -> Row:
    return {"prompt": "Hi", names[0]: first, names[1]: second, **more}


# Two responses of which neither is called the better one ----------------------------------------------------

NUMBERED, FROM_ZERO = ("response1", "response2"), ("response_0", "response_1")
VERDICTS: list[tuple[tuple[str, str], Row, Row, Row]] = [
    # names, what says that the first is better, that the second is, that neither is
    (("response_a", "response_b"), {"winner": "model_a"}, {"winner": "model_b"}, {"winner": "tie (bothbad)"}),
    (("answer_A", "answer_B"), {"winner": "A"}, {"winner": "B"}, {"winner": "both_bad"}),
    (("output_a", "output_b"), {"preference": "[[A>>B]]"}, {"preference": "[[B>A]]"}, {"preference": "A=B"}),
    (NUMBERED, {"overall_preference": -2}, {"overall_preference": 1}, {"overall_preference": 0}),
    (
        ("response_1", "response_2"),
        {"preference_strength": -1},
        {"preference_strength": 3},
        {"preference_strength": 0},
    ),
    (("response_1", "response_2"), {"preference": 1}, {"preference": 2}, {"preference": "tie"}),
    (FROM_ZERO, {"better_response_id": 0}, {"better_response_id": 1}, {"better_response_id": None}),
    (
        FROM_ZERO,
        {"score_0": 0.5, "score_1": -0.5},
        {"score_0": -1, "score_1": 1},
        {"score_0": 0, "score_1": 0},
    ),
    (
        ("human_ref_A", "human_ref_B"),
        {"labels": 1, "score_A": 9, "score_B": 2},
        {"labels": 0, "score_A": 2, "score_B": 9},
        {"labels": None, "score_A": 2, "score_B": 2},
    ),
    (
        ("response_a", "response_b"),
        {"winner_model_a": 1, "winner_model_b": 0, "winner_tie": 0},
        {"winner_model_a": 0, "winner_model_b": 1, "winner_tie": 0},
        {"winner_model_a": 0, "winner_model_b": 0, "winner_tie": 1},
    ),
    (
        ("answer_0", "answer_1"),
        {"label_0": 1.0, "label_1": 0.0},
        {"label_0": 0.0, "label_1": 1.0},
        {"label_0": 0.5, "label_1": 0.5},
    ),
    (
        ("completion_a", "completion_b"),
        {"rank_a": 1, "rank_b": 2},
        {"rank_a": 2, "rank_b": 1},
        {"rank_a": 1.5, "rank_b": 1.5},
    ),
    (
        ("conv_A", "conv_B"),
        {"conv_A_rating": 4.0, "conv_B_rating": 3.0},
        {"conv_A_rating": 2.0, "conv_B_rating": 3.0},
        {"conv_A_rating": 3.0, "conv_B_rating": 3.0},
    ),
    (("response_1", "response_2"), {"winner": "model_a"}, {"winner": "model_b"}, {"winner": "tie (bothbad)"}),
    (
        ("response_a", "response_b"),
        {"winner": "model-b", "model_a": "model-b", "model_b": "model-a"},
        {"winner": "model-b", "model_a": "llama", "model_b": "model-b"},
        {"winner": "tie", "model_a": "model-b", "model_b": "model-a"},
    ),
    (
        ("human_ref_A", "human_ref_B"),
        {"labels": "1", "score_A": "9", "score_B": "2"},
        {"labels": "0", "score_A": "2", "score_B": "9"},
        {"labels": None, "score_A": "2", "score_B": "2"},
    ),
    (
        ("response_a", "response_b"),
        {"winner_model_a": "True", "winner_model_b": "False"},
        {"winner_model_a": "False", "winner_model_b": "True"},
        {"winner_model_a": "False", "winner_model_b": "False"},
    ),
    (
        ("completion_a", "completion_b"),
        {"overall_pref": "A-is-slightly-better"},
        {"overall_pref": "B-is-clearly-better"},
        {"overall_pref": "Tie"},
    ),
    (("left_answer", "right_answer"), {"winner": "left"}, {"winner": "right"}, {"winner": "it's a tie"}),
    (("reply_first", "reply_second"), {"better": "first"}, {"better": "second"}, {"better": "neutral"}),
    (("response_a", "response_b"), {"winner": "first"}, {"winner": "second"}, {"winner": "both_bad"}),
    (("response_a", "response_b"), {"winner": "A"}, {"winner": "B"}, {"winner": "N/A"}),
    (
        ("response_a", "response_b"),
        {"verdict": "Response A is a better answer"},
        {"verdict": "the second is a better answer"},
        {"verdict": "a tie"},
    ),
    (
        ("answer_1", "answer_2"),
        {"votes_1": 9, "votes_2": "3"},
        {"votes_1": 1, "votes_2": "3"},
        {"votes_1": 1, "votes_2": "n/a"},
    ),
    (("response_a", "response_b"), {"scores": [9, 3]}, {"scores": [1, 3]}, {"scores": [3, 3]}),
    (
        ("response_a", "response_b"),
        {"ratings": {"a": 9, "b": 3}},
        {"ratings": {"a": 1, "b": 3}},
        {"ratings": {"a": None, "b": 3}},
    ),
    (("answer_a", "answer_b"), {"judgment": "A>>B"}, {"judgment": "B>A"}, {"judgment": "A=B"}),
    (("response_A", "response_B"), {"preferred": "A"}, {"preferred": "B"}, {"preferred": "neither"}),
]


@pytest.mark.parametrize(("names", "first", "second", "neither"), VERDICTS)
def test_the_better_response_is_the_one_that_the_verdict_names(
    tmp_path: Path, names: tuple[str, str], first: Row, second: Row, neither: Row
) -> None:
    rows = [
        ab("good", "bad", names, **first),
        ab("bad", "good", names, **second),
        ab("same", "other", names, **neither),
    ]
    found = pairs(tmp_path, *rows)
    assert found[:2] == [("good", "bad")] * 2
    assert found[2] in (Reason.TIE, Reason.NO_VERDICT)
    named = {"chosen_column": names[1], "rejected_column": names[0]}
    assert pairs(tmp_path, *rows, **named)[:2] == [("good", "bad")] * 2  # whatever the user calls chosen


def test_what_decided_is_recorded_and_the_columns_stay(tmp_path: Path) -> None:
    source, columns = opened(tmp_path, ab("good", "bad", winner="model_a"))
    assert columns.read(source.rows[0]) == GOOD_BAD
    assert source.pairs_from == "response_a and response_b, by winner"
    assert source.rows["winner"][:] == ["model_a"]


def test_whole_conversations_with_a_verdict_are_compared_too(tmp_path: Path) -> None:
    asked = {"role": "user", "content": [{"type": "text", "text": "Hi"}]}
    sides = [
        [asked, {"role": "assistant", "content": [{"type": "text", "text": text}]}]
        for text in ("bad", "good")
    ]
    row = {"conversation_a": sides[0], "conversation_b": sides[1], "winner": "model_b", "model_a": "x"}
    assert pairs(tmp_path, row) == [("good", "bad")]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({}, "response_a and response_b are two responses, and no column says which is better"),
        (
            {"winner": "gpt-4"},
            "\"winner\" may say .* its values are 'gpt-4'. Make it a, b or tie, .* `ignore_columns=winner`",
        ),
        ({"labels": 1}, '"labels" may say which'),
        ({"label": -1}, '"label" may say which'),
        ({"preference": "not b"}, '"preference" may say which'),
        ({"preference": "B is worse"}, '"preference" may say which'),
        ({"preference": "better than b"}, '"preference" may say which'),
        ({"preference": "this is a good answer"}, '"preference" may say which'),
        (
            {"winner": "a", "preference": "b"},
            "winner and preference contradict .* `ignore_columns=preference`",
        ),
    ],
)
def test_a_verdict_that_cannot_be_read_is_refused_by_name(tmp_path: Path, more: Row, message: str) -> None:
    with pytest.raises(PreferenceError, match=message):
        opened(tmp_path, ab("x", "y", **more))


def test_objects_with_their_scores_are_compared_by_them(tmp_path: Path) -> None:
    good, bad = {"text": "good", "score": 5}, {"text": "bad", "score": 1}
    rows = [ab(good, bad), ab(bad, good), ab(good, {**bad, "score": 5})]
    assert pairs(tmp_path, *rows) == [("good", "bad")] * 2 + [Reason.TIE]
    named = [
        {"prompt": "Hi", "chosen": one, "rejected": two}
        for one, two in ((good, bad), (good, bad), (bad, good))
    ]
    source, columns = opened(tmp_path, *named)
    assert [columns.read(row) for row in source.rows][1:] == [GOOD_BAD, Unusable(Reason.VERDICT_DISAGREES)]
    assert source.pairs_from is None  # the names say which is chosen


@pytest.mark.parametrize(
    "names", [("response_1", "response_2", "response_3"), ("answer_a", "answer_b", "answer_c")]
)
def test_more_than_two_responses_are_refused(tmp_path: Path, names: tuple[str, str, str]) -> None:
    row = {"prompt": "Hi", **dict(zip(names, ("good", "bad", "best"), strict=True)), "winner": names[0][-1]}
    with pytest.raises(PreferenceError, match=f"{', '.join(names)} are more than two responses"):
        opened(tmp_path, row)
    assert pairs(tmp_path, row, ignore_columns=names[2:]) == [("good", "bad")]


def test_helpful_and_safe_are_two_verdicts_unless_they_agree(tmp_path: Path) -> None:
    rows = [
        ab("good", "bad", FROM_ZERO, better_response_id=0, safer_response_id=0),
        ab("bad", "good", FROM_ZERO, better_response_id=1, safer_response_id=1),
    ]
    assert pairs(tmp_path, *rows) == [("good", "bad")] * 2
    rows[0]["safer_response_id"] = 1
    with pytest.raises(PreferenceError, match="`ignore_columns=safer_response_id`"):
        opened(tmp_path, *rows)
    assert pairs(tmp_path, *rows, ignore_columns=("safer_response_id",)) == [("good", "bad")] * 2
    assert pairs(tmp_path, *rows, ignore_columns=("better_response_id",))[0] == ("bad", "good")


# Chosen and rejected, and what says so again ----------------------------------------------------------------


def chosen(**more: Any) -> Row:
    return {"prompt": "Hi", "chosen": "good", "rejected": "bad", **more}


@pytest.mark.parametrize(
    "names",
    [
        "score_chosen score_rejected",
        "chosen-rating rejected-rating",
        "chosen_avg_rating rejected_avg_rating",
        "chosenScore rejectedScore",
        "chosen_rm_score rejected_rm_score",
        "upvotes_chosen upvotes_rejected",
    ],
)
def test_scores_confirm_the_pair_or_drop_it(tmp_path: Path, names: str) -> None:
    first, second = names.split()
    scores = [(5, 3), (4.5, 4.0), (4, 4), (3, 5), (None, 2)]
    rows = [chosen(**{first: one, second: two}) for one, two in scores]
    good = ("good", "bad")
    assert pairs(tmp_path, *rows) == [good, good, Reason.TIE, Reason.VERDICT_DISAGREES, good]
    assert pairs(tmp_path, *rows, min_margin=1)[:2] == [good, Reason.SMALL_MARGIN]
    assert pairs(tmp_path, *rows, ignore_columns=(first,)) == [good] * 5


@pytest.mark.parametrize("missing", [None, math.nan, "N/A", "nan", ""])
def test_a_missing_score_confirms_nothing_and_hides_no_other(tmp_path: Path, missing: object) -> None:
    rows = [chosen(chosen_score=one, rejected_score=2) for one in (5, 1, missing)]
    good = ("good", "bad")
    assert pairs(tmp_path, *rows) == [good, Reason.VERDICT_DISAGREES, good]


def test_scores_that_cannot_be_read_are_refused_by_name(tmp_path: Path) -> None:
    row = chosen(chosen_score="8/10", rejected_score="9/10")
    ignored = {"ignore_columns": ("chosen_score", "rejected_score")}
    with pytest.raises(
        PreferenceError,
        match=r"its values are '8/10', '9/10'\. .* `ignore_columns=chosen_score,rejected_score`",
    ):
        opened(tmp_path, row)
    assert pairs(tmp_path, row, **ignored) == [("good", "bad")]
    turns = [{"role": role, "content": "Hi"} for role in ("user", "assistant")]
    with pytest.raises(PreferenceError, match=r'"ratings" holds two scores, and nothing says whose each is'):
        opened(tmp_path, chosen(ratings=[1, 5], messages=turns))
    assert pairs(tmp_path, chosen(ratings=[1, 5], generations=["bad", "good"])) == [("good", "bad")]
    assert pairs(tmp_path, chosen(scores={"chosen": 5, "rejected": 1})) == [("good", "bad")]


def test_scores_that_prefer_the_rejected_ones_are_refused(tmp_path: Path) -> None:
    rows = [chosen(chosen_score=1, rejected_score=2) for _ in range(3)]
    with pytest.raises(PreferenceError, match=r"in most rows\. Swap .* `ignore_columns=chosen_score,rej"):
        opened(tmp_path, *rows)


def test_a_status_of_tie_drops_the_row(tmp_path: Path) -> None:
    rows = [chosen(status=status) for status in ("tie", "unchanged", "swapped")]
    assert pairs(tmp_path, *rows) == [Reason.TIE, ("good", "bad"), ("good", "bad")]
    assert pairs(tmp_path, *[chosen(status="done")] * 2) == [("good", "bad")] * 2


def test_a_pair_marked_as_a_tie_is_dropped(tmp_path: Path) -> None:
    rows = [chosen(is_tie=False), chosen(is_tie=True), chosen(is_tie=None)]
    assert pairs(tmp_path, *rows) == [("good", "bad"), Reason.TIE, ("good", "bad")]


def test_flags_written_as_text_are_flags(tmp_path: Path) -> None:
    for yes, no in (("True", "False"), ("true", "false"), ("1", "0")):
        rows = [chosen(is_tie=no), chosen(is_tie=yes)]
        assert pairs(tmp_path, *rows) == [("good", "bad"), Reason.TIE]
    with pytest.raises(
        PreferenceError, match=r"\"tie\" may say .* 'no', 'yes'. Make it true or false, or pass"
    ):
        opened(tmp_path, chosen(tie="no"), chosen(tie="yes"))


@pytest.mark.parametrize(("better", "worse"), [("response_b", "response_a"), ("B", "A"), ("gpt", "llama")])
def test_chosen_and_rejected_that_name_two_responses_are_their_verdict(
    tmp_path: Path, better: str, worse: str
) -> None:
    row = ab("bad", "good", chosen=better, rejected=worse, model_a="llama", model_b="gpt")
    source, columns = opened(tmp_path, row)
    assert columns.read(source.rows[0]) == GOOD_BAD
    assert source.pairs_from == "response_a and response_b, by chosen"
    with pytest.raises(PreferenceError, match=r"\"chosen\" may say .* its values are 'x'"):
        opened(tmp_path, {**row, "chosen": "x"})
    assert pairs(tmp_path, {**row, "chosen": "good", "rejected": "bad"}) == [("good", "bad")]


def test_a_margin_next_to_the_pair_is_looked_at(tmp_path: Path) -> None:
    rows = [chosen(margin=2.0), chosen(margin=0.1), chosen(margin=-1), chosen(margin=None)]
    good = ("good", "bad")
    assert pairs(tmp_path, *rows) == [good, good, Reason.VERDICT_DISAGREES, good]
    assert pairs(tmp_path, *rows, min_margin=0.5)[:2] == [good, Reason.SMALL_MARGIN]
    with pytest.raises(PreferenceError, match="margin prefers the rejected response in most rows"):
        opened(tmp_path, *rows[2:3])


@pytest.mark.parametrize(
    "names",
    [
        *(
            ("Chosen", "Rejected"),
            ("chosenResponse", "rejectedResponse"),
            ("Chosen Response", "Rejected Response"),
        ),
        *(
            ("better", "worse"),
            ("winning_response", "losing_response"),
            ("positive_answer", "negative_answer"),
            ("best_response", "worst_response"),
            ("y_w", "y_l"),
        ),
    ],
)
def test_other_words_for_chosen_and_rejected_in_any_case(tmp_path: Path, names: tuple[str, str]) -> None:
    row = {"Prompt": "Hi", names[1]: "bad", names[0]: "good"}
    source, columns = opened(tmp_path, row)
    assert columns.read(source.rows[0]) == GOOD_BAD
    named = {"prompt_column": "Prompt", "chosen_column": names[1], "rejected_column": names[0]}
    assert pairs(tmp_path, row, **named) == [("bad", "good")]


def test_names_of_the_winning_model_are_no_responses(tmp_path: Path) -> None:
    row = ab("bad", "good", winner="model_b", loser="model_a")
    assert pairs(tmp_path, row) == [("good", "bad")]


def test_a_system_prompt_under_another_usual_name_is_part_of_the_prompt(tmp_path: Path) -> None:
    source, columns = opened(tmp_path, chosen(system_prompt="Be kind."))
    pair = columns.read(source.rows[0])
    assert isinstance(pair, Pair)
    assert pair.context.system == "Be kind."


def test_texts_that_a_template_has_rendered_whole_are_refused_as_such(tmp_path: Path) -> None:
    asked = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    with pytest.raises(PreferenceError, match="rendered with a chat template: give lists of messages"):
        opened(tmp_path, {"chosen": f"{asked}good<|im_end|>", "rejected": f"{asked}bad<|im_end|>"})


def test_a_least_margin_needs_scores(tmp_path: Path) -> None:
    with pytest.raises(PreferenceError, match="`min_margin` needs scores"):
        opened(tmp_path, chosen(), min_margin=1)


@pytest.mark.parametrize(
    ("name", "value"), [("images", ["x.png"]), ("history", [["a", "b"]]), ("video", "v.mp4")]
)
def test_what_belongs_to_the_prompt_and_is_not_read_is_refused_by_name(
    tmp_path: Path, name: str, value: Any
) -> None:
    with pytest.raises(PreferenceError, match=f'"{name}" holds .* Pass `ignore_columns={name}`'):
        opened(tmp_path, chosen(**{name: value}))
    assert pairs(tmp_path, chosen(**{name: value}), ignore_columns=(name,)) == [("good", "bad")]
    assert pairs(tmp_path, chosen(**{name: None})) == [("good", "bad")]


def test_files_of_images_are_refused_whatever_their_column_is_called(tmp_path: Path) -> None:
    table = pa.Table.from_pylist([chosen(shot={"bytes": b"png", "path": None})])
    pq.write_table(table, tmp_path / "rows.parquet")
    with pytest.raises(PreferenceError, match='"shot" holds files of images'):
        open_pairs(str(tmp_path / "rows.parquet"))
    source, columns = open_pairs(str(tmp_path / "rows.parquet"), DatasetSpec(ignore_columns=("shot",)))
    assert columns.read(source.rows[0]) == GOOD_BAD


def test_prompts_with_the_place_of_an_image_are_refused(tmp_path: Path) -> None:
    row = {**chosen(), "prompt": "<image>\nWhat is it?"}
    with pytest.raises(PreferenceError, match='"prompt" holds <image>'):
        opened(tmp_path, row)
    assert pairs(tmp_path, {**row, "images": ["x"]}, ignore_columns=("images",)) == [("good", "bad")]


def test_responses_that_alone_are_rendered_are_refused(tmp_path: Path) -> None:
    row = {**chosen(), "chosen": "<|im_start|>assistant\ngood", "rejected": "<|im_start|>assistant\nbad"}
    with pytest.raises(PreferenceError, match=r'"chosen" are rendered .* those of the prompt are not'):
        opened(tmp_path, row)
    rendered = "<|im_start|>user\nHi<|im_end|>\n"
    assert pairs(tmp_path, {**row, "prompt": rendered}) == [(row["chosen"], row["rejected"])]


def test_a_prompt_that_one_response_repeats_is_refused(tmp_path: Path) -> None:
    asked = "What is the capital?"
    row = {"prompt": asked, "chosen": f"{asked} good", "rejected": "bad"}
    with pytest.raises(PreferenceError, match='"chosen" begin with those of "prompt", the other ones do not'):
        opened(tmp_path, row)


def test_an_empty_prompt_column_is_none(tmp_path: Path) -> None:
    asked = {"role": "user", "content": "Hi"}
    sides = {side: [asked, {"role": "assistant", "content": text}] for side, text in
             (("chosen", "good"), ("rejected", "bad"))}  # fmt: skip
    assert pairs(tmp_path, {"prompt": None, **sides}) == [("good", "bad")]


# Several answers --------------------------------------------------------------------------------------------

SCORED = [{"response": text, "overall_score": score, "model": text[:1]} for text, score in
          (("mid", 5.0), ("good", 8.5), ("bad", 2.0), ("also bad", 2.0))]  # fmt: skip


def test_the_best_and_the_worst_answer_make_a_pair(tmp_path: Path) -> None:
    source, columns = opened(tmp_path, {"instruction": "Hi", "completions": SCORED, "id": 7})
    assert columns.read(source.rows[0]) == Pair("Hi", "good", "also bad")
    assert source.pairs_from == "best-worst of completions, by overall_score"
    row = source.rows[0]
    assert (row["id"], row["chosen_overall_score"], row["rejected_model"]) == (7, 8.5, "a")


def test_other_pairs_are_made_when_asked_for_and_ties_are_counted(tmp_path: Path) -> None:
    row = {"prompt": "Hi", "completions": SCORED}
    assert pairs(tmp_path, row, pairs="adjacent") == [("good", "mid"), ("mid", "bad")]
    everything = [("good", "mid"), ("good", "bad"), ("good", "also bad"), ("mid", "bad"), ("mid", "also bad")]
    assert pairs(tmp_path, row, pairs="all") == everything
    assert opened(tmp_path, row, pairs="all")[0].repairs == {TIES: 1}
    assert pairs(tmp_path, row, pairs="all", min_margin=4) == [("good", "bad"), ("good", "also bad")]
    assert opened(tmp_path, row, pairs="all", min_margin=4)[0].repairs == {TIES: 1, SMALL: 3}


@pytest.mark.parametrize(
    "row",
    [
        {"answers": [{"answer": "bad", "rank": 2.0}, {"answer": "good", "rank": 1.0}]},
        {"responses": ["bad", "good"], "scores": [0.1, 0.9]},
        {"generations": ["bad", "good"], "ratings": ["1", "5"]},
        {"completions": ["bad", "good"], "ranks": [2, 1]},
        {"answers": [{"text": "bad", "upvotes": 1}, {"text": "good", "upvotes": 9}]},
        {"responses": ["bad", "good", "unrated"], "scores": [1, 9, math.nan]},
        {"responses": '["bad", "good"]', "scores": "[1, 9]"},
        {"completions": "[{'response': 'bad', 'score': 1}, {'response': 'good', 'score': 9}]"},
        {"completions": [{"rank": i, "completion": [{"role": "assistant", "content": text}]}
                         for i, text in enumerate(("good", "bad"))]},
    ],
)  # fmt: skip
def test_answers_with_scores_or_ranks_are_read_in_every_form(tmp_path: Path, row: Row) -> None:
    for prompt in ("prompt", "question", "context"):
        assert pairs(tmp_path, {prompt: "Hi", **row}) == [("good", "bad")]


def test_a_ranking_that_may_be_an_order_is_not_read(tmp_path: Path) -> None:
    row = {"prompt": "Hi", "responses": ["bad", "good", "mid"]}
    assert pairs(tmp_path, {**row, "ranking": [3, 1, 2], "scores": [1, 3, 2]}) == [("good", "bad")]
    with pytest.raises(PreferenceError, match="nothing says which of them is better"):
        opened(tmp_path, {**row, "ranking": [3, 1, 2]})  # the third is the best, or the first the worst
    assert pairs(tmp_path, {**row, "ranking": [3, 1, 3]}) == [("good", "mid")]  # no order has ties
    assert pairs(tmp_path, {**row, "ranks": [3, 1, 2]}) == [("good", "bad")]


def test_scores_of_fewer_answers_are_nobodys(tmp_path: Path) -> None:
    rows = [
        {"prompt": "Hi", "responses": ["bad", "good", "mid"], "scores": scores}
        for scores in ([5, 3], [1, 3, 2])
    ]
    assert pairs(tmp_path, *rows) == [Reason.ONE_ANSWER, ("good", "bad")]
    scored = [{"text": text, "score": score} for text, score in (("x", None), ("good", 2), ("bad", 1))]
    assert pairs(tmp_path, {"prompt": "Hi", "responses": scored}) == [("good", "bad")]


def test_rows_of_one_prompt_have_one_system_text(tmp_path: Path) -> None:
    rows = [
        {"system": system, "prompt": "Hi", "response": text, "score": score}
        for system in ("S", "T")
        for text, score in (("good", 2), ("bad", 1))
    ]
    source, columns = opened(tmp_path, *rows)
    found = [columns.read(row) for row in source.rows]
    assert [pair.context.system for pair in found if isinstance(pair, Pair)] == ["S", "T"]
    with pytest.raises(PreferenceError, match="no prompt has two answers"):
        opened(tmp_path, rows[0], rows[3])


@pytest.mark.parametrize("start", [0, 1])
def test_the_index_of_the_best_answer_counts_from_zero_or_one(tmp_path: Path, start: int) -> None:
    rows = [
        {"prompt": "Hi", "responses": answers, "best": answers.index("good") + start}
        for answers in (["good", "bad"], ["bad", "good"])
    ]
    assert pairs(tmp_path, *rows) == [("good", "bad")] * 2
    with pytest.raises(PreferenceError, match='"responses" holds several answers, and nothing says which'):
        opened(tmp_path, rows[1 - start])  # an index of 1 of two: the first or the second


def test_answers_that_do_not_differ_or_stand_alone_are_dropped(tmp_path: Path) -> None:
    rows = [
        {"prompt": "Hi", "responses": texts, "scores": scores}
        for texts, scores in ((["a", "b"], [1, 1]), (["a"], [1]), (["a", "b", None], [1, None, 2]), ([], []))
    ]
    one = Reason.ONE_ANSWER
    assert pairs(tmp_path, {**rows[0], "scores": [2, 1]}, *rows) == [("a", "b"), Reason.TIE, one, one, one]


def test_existing_pairs_win_over_answer_columns(tmp_path: Path) -> None:
    row = {**chosen(), "completions": SCORED, "answers": ["x", "y"], "ranks": [1, 2]}
    assert pairs(tmp_path, row) == [("good", "bad")]


def test_labelled_rows_of_a_prompt_make_a_pair_wherever_they_are(tmp_path: Path) -> None:
    rows: list[Row] = [
        {
            "prompt": [{"role": "user", "content": f"Q{i}"}],
            "completion": f"{word} {i}",
            "label": word == "good",
        }
        for i in range(300)
        for word in ("good", "bad")
    ]
    random.Random(0).shuffle(rows)
    rows.insert(0, {**rows[0], "prompt": [{"role": "user", "content": "alone"}]})
    found = pairs(tmp_path, *rows)
    assert found[0] == Reason.ONE_ANSWER
    assert sorted(found[1:]) == sorted((f"good {i}", f"bad {i}") for i in range(300))
    order = list(dict.fromkeys(row["completion"].split()[1] for row in rows[1:]))
    assert [one[0].split()[1] for one in found[1:]] == order


def test_answers_whose_fields_mix_types_make_pairs(tmp_path: Path) -> None:
    answers = [{"content": "good", "score": 2.5}, {"content": "bad", "score": "1", "note": [1]}]
    more = [{"content": "good", "score": 3, "note": "x"}, {"content": "bad", "score": None}]
    rows = [{"prompt": "Hi", "completions": one} for one in (answers, more)]
    assert pairs(tmp_path, *rows) == [("good", "bad"), Reason.ONE_ANSWER]


@pytest.mark.parametrize(
    "words",
    [
        ("desirable", "undesirable"),
        ("Thumbs_Up", "thumbs down"),
        ("good", "Bad"),
        ("true", "false"),
        ("👍", "👎"),
    ],
)
def test_labels_in_words_make_pairs_of_the_rows_of_a_prompt(tmp_path: Path, words: tuple[str, str]) -> None:
    rows = [{"prompt": "Hi", "completion": word.lower(), "label": word} for word in reversed(words)]
    assert pairs(tmp_path, *rows) == [(words[0].lower(), words[1].lower())]


def test_labels_that_cannot_be_read_are_shown_with_what_can(tmp_path: Path) -> None:
    rows = [{"prompt": "Hi", "completion": word, "label": word} for word in ("great", "bad")]
    message = (
        '"label" may say how good "completion" is, .* \'great\'. Make them numbers, true and false, or words'
    )
    with pytest.raises(PreferenceError, match=message):
        opened(tmp_path, *rows)


def test_the_steps_of_an_answer_are_no_answers(tmp_path: Path) -> None:
    row = {"prompt": "Hi", "completions": ["good", "bad"], "labels": [True, False]}
    with pytest.raises(PreferenceError, match="are the steps of one answer, as TRL has them"):
        opened(tmp_path, row)
    assert pairs(tmp_path, {**row, "labels": [1, 0]}) == [("good", "bad")]


def test_labelled_rows_without_a_second_answer_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PreferenceError, match="no prompt has two answers in completion that differ in label"):
        opened(tmp_path, {"prompt": "Hi", "completion": "good", "label": True})


@pytest.mark.parametrize("name", ["train", "weight"])
def test_pairs_marked_as_not_to_be_trained_on_are_dropped(tmp_path: Path, name: str) -> None:
    rows = [chosen(**{name: mark}) for mark in (1, 0, None)]
    good = ("good", "bad")
    assert pairs(tmp_path, *rows) == [good, Reason.NOT_FOR_TRAINING, good]
    assert pairs(tmp_path, *rows, ignore_columns=(name,)) == [good] * 3


# Fine-tuning ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mark", [{"label": False}, {"weight": 0}, {"train": False}, {"kto_tag": False}])
def test_rows_marked_as_not_to_be_trained_on_are_dropped(tmp_path: Path, mark: Row) -> None:
    (name, value), row = next(iter(mark.items())), {"prompt": "Hi", "completion": "good"}
    rows = [{**row, **mark}, {**row, name: type(value)(1)}, {**row, name: None}]
    source, columns = open_chats(write_jsonl(tmp_path / "rows.jsonl", rows))
    kept = Chat("Hi", "good")
    assert [columns.read(row) for row in source.rows] == [Unusable(Reason.NOT_FOR_TRAINING), kept, kept]


@pytest.mark.parametrize("name", ["label", "weight", "train"])
def test_marks_written_as_text_are_marks(tmp_path: Path, name: str) -> None:
    for yes, no in (("True", "False"), ("1", "0"), ("Desirable", "undesirable"), ("good", "bad")):
        rows = [{"prompt": "Hi", "completion": "good", name: mark} for mark in (yes, no)]
        source, columns = open_chats(write_jsonl(tmp_path / "rows.jsonl", rows))
        dropped = Unusable(Reason.NOT_FOR_TRAINING)
        assert [columns.read(row) for row in source.rows] == [Chat("Hi", "good"), dropped]
    rows = [{"prompt": "Hi", "completion": "good", name: mark} for mark in ("yes", "no")]
    with pytest.raises(PreferenceError, match=f'"{name}" may say which rows .* `ignore_columns={name}`'):
        open_chats(write_jsonl(tmp_path / "rows.jsonl", rows))


def test_weights_that_are_not_read_are_refused(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [{"prompt": "Hi", "completion": "a", "weight": 0.5}])
    with pytest.raises(PreferenceError, match="weights other than 0 and 1"):
        open_chats(path)
    assert open_chats(path, DatasetSpec(ignore_columns=("weight",)))[1].marks == ()


def test_a_topic_called_label_marks_nothing(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [{"prompt": "Hi", "completion": "a", "label": "maths"}])
    assert open_chats(path)[1].marks == ()


@pytest.mark.parametrize("key", ["weight", "train", "loss", "training"])
def test_a_conversation_ends_with_its_last_trained_message(tmp_path: Path, key: str) -> None:
    hi = {"role": "user", "content": "Hi"}
    said = [{"role": "assistant", "content": text, key: weight} for text, weight in (("a", 1), ("b", 0))]
    rows = [{"messages": [hi, *said]}, {"messages": [hi, said[1]]}]
    source, columns = open_chats(write_jsonl(tmp_path / "rows.jsonl", rows))
    first, second = map(columns.read, source.rows)
    assert isinstance(first, Chat)
    assert (text(first.response), first.shortened) == ("a", True)
    assert second == Unusable(Reason.NOT_FOR_TRAINING)
