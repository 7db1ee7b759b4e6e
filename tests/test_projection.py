"""Tests of the clean spans: examples worked by hand, and what must hold for any spans."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sepo_data.projection import clean_spans


def spans(text: str, raw: list[tuple[int, int]]) -> list[tuple[int, int]]:
    start, end = clean_spans(text, [s for s, _ in raw], [e for _, e in raw])
    return list(zip(start.tolist(), end.tolist(), strict=True))


def test_a_trimmed_space_goes_to_the_word_behind_it() -> None:
    assert spans("Hello  world", [(0, 5), (7, 12)]) == [(0, 5), (5, 12)]


def test_a_dropped_combining_mark_goes_to_the_letter_before_it() -> None:
    # e + U+0301 + a, the tokenizer composed the accent and reports only the letters
    assert spans("e\u0301a", [(0, 1), (2, 3)]) == [(0, 2), (2, 3)]


def test_a_gap_of_mark_and_space_is_split_between_its_neighbours() -> None:
    assert spans("e\u0301 a", [(0, 1), (3, 4)]) == [(0, 2), (2, 4)]


def test_uncovered_head_and_tail_go_to_the_first_and_last_token() -> None:
    assert spans("\n\nab\n", [(2, 3), (3, 4)]) == [(0, 3), (3, 5)]


def test_tokens_of_one_character_keep_sharing_it() -> None:
    assert spans("😀", [(0, 1)] * 4) == [(0, 1)] * 4


def test_empty_spans_are_one_code_point_wide() -> None:
    assert spans("a ", [(0, 0), (0, 1), (2, 2)]) == [(0, 1), (0, 1), (1, 2)]


@st.composite
def texts_with_spans(draw: st.DrawFn) -> tuple[str, list[tuple[int, int]]]:
    text = draw(st.text(alphabet="ab \n\u0301\0😀", min_size=1, max_size=30))
    size = draw(st.integers(1, 12))
    points = st.lists(st.integers(0, len(text)), min_size=size, max_size=size).map(sorted)
    starts, ends = draw(points), draw(points)
    return text, [(min(s, e), e) for s, e in zip(starts, ends, strict=True)]


@given(texts_with_spans())
def test_clean_spans_cover_the_text_in_order_and_stay_clean(case: tuple[str, list[tuple[int, int]]]) -> None:
    text, raw = case
    clean = spans(text, raw)
    starts, ends = np.array(clean).T
    assert starts[0] == 0
    assert ends[-1] == len(text)
    assert (np.diff(starts) >= 0).all()
    assert (np.diff(ends) >= 0).all()
    assert (ends > starts).all()
    assert (starts[1:] <= ends[:-1]).all()
    assert spans(text, clean) == clean
