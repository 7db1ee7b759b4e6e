"""Tests of projection: examples worked by hand, what must hold for any spans, and real tokenizers' spans."""

from fractions import Fraction
from functools import cache

import numpy as np
import pytest
from exact_projection import exact_bounds, exact_dropped, exact_project, exact_project_mask
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from nasty import NASTY
from tiny_tokenizers import CORPUS, FAMILIES, tiny_tokenizer

from sepo_data.projection import TICKS, Bounds, clean_spans, overlaps, partition, project, project_mask
from sepo_data.tokens.encoder import ResponseEncoder, response_encoder
from sepo_data.tokens.encoding import EncodedResponse, encode_responses
from sepo_data.tokens.rendered import Part, RenderedChat

Spans = list[tuple[int, int]]
REWARD = st.floats(-5, 5, width=32).map(lambda reward: reward + 0.0)  # no -0.0: a sum of one is 0.0


def spans(text: str, raw: Spans) -> Spans:
    start, end = clean_spans(text, [s for s, _ in raw], [e for _, e in raw])
    return list(zip(start.tolist(), end.tolist(), strict=True))


def bounds(clean: Spans) -> Bounds:
    return partition([s for s, _ in clean], [e for _, e in clean])


def in_ticks(exact: list[Fraction]) -> list[Fraction]:
    return [bound * TICKS for bound in exact]


def assert_like(found: np.ndarray, exact: list[Fraction | None], scale: float) -> None:
    """Equal up to rounding, NaN where the exact value is None."""
    expected = [np.nan if value is None else float(value) for value in exact]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12 * scale)


# clean_spans: examples


def test_a_trimmed_space_goes_to_the_word_after_it() -> None:
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


def test_spans_that_leave_the_text_are_clipped_and_those_that_step_back_are_moved_on() -> None:
    assert spans("abc", [(-2, 1), (-1, 2), (2, 9)]) == [(0, 1), (0, 2), (2, 3)]
    assert spans("abcd", [(0, 2), (2, 3), (1, 4)]) == [(0, 2), (2, 3), (2, 4)]
    assert spans("abcd", [(0, 3), (1, 2), (2, 4)]) == [(0, 3), (1, 3), (2, 4)]


def test_without_tokens_or_text_there_is_nothing_to_clean() -> None:
    assert spans("abc", []) == []
    assert spans("", []) == []
    assert bounds([]).tolist() == [0]


def test_spans_are_int32_and_bounds_int64() -> None:
    start, end = clean_spans("ab", [0, 1], [1, 2])
    dtypes = [str(values.dtype) for values in (start, end, partition(start, end), partition([], []))]
    assert dtypes == ["int32", "int32", "int64", "int64"]


# partition, project, project_mask: examples


def test_bounds_of_a_long_text_fit_though_its_spans_are_int32() -> None:
    # 720,720 ticks a code point: 2**31 is reached after 2,979 of them
    start = np.arange(4000, dtype=np.int32)
    end = (start + 1).astype(np.int32)
    assert partition(start, end).tolist() == [TICKS * i for i in range(4001)]


def test_whole_tokens_add_up_and_a_divided_one_is_shared_by_length() -> None:
    # "ab" + "cdef" onto "abcd" + "ef": 1 + 2/4 of 3, and the other half of 3
    source, target = bounds([(0, 2), (2, 6)]), bounds([(0, 4), (4, 6)])
    assert project([1.0, 3.0], source, target).tolist() == [2.5, 1.5]
    # only "cdef" is selected: 2 of 4 characters of "abcd", all of "ef"
    assert project_mask([False, True], source, target).tolist() == [0.5, 1.0]


def test_the_bytes_of_an_emoji_add_up_to_its_token() -> None:
    # "a😀": a and four bytes onto a and one whole emoji, and back: an even share of the sum each
    fine, coarse = bounds([(0, 1), *[(1, 2)] * 4]), bounds([(0, 1), (1, 2)])
    assert (fine * 4 / TICKS).tolist() == [0, 4, 5, 6, 7, 8]
    assert project([9.0, 1.0, 2.0, 3.0, 4.0], fine, coarse).tolist() == [9.0, 10.0]
    assert project([9.0, 10.0], coarse, fine).tolist() == [9.0, 2.5, 2.5, 2.5, 2.5]


def test_a_space_that_is_merged_with_the_first_byte_of_a_character_belongs_to_that_token() -> None:
    # " Ⅳ" in GPT-2: "Ġâ" (0, 2), "ħ" (1, 2), "£" (1, 2); the first of the three bytes is its too
    assert (bounds([(0, 2), (1, 2), (1, 2)]) * 3 / TICKS).tolist() == [0, 4, 5, 6]


def test_more_tokens_on_a_character_than_ticks_can_divide_still_conserve() -> None:
    # 17 does not divide the ticks: bounds are rounded down to a tick, no token is lost
    clean = [(0, 1), *[(1, 2)] * 17, (2, 3)]
    found, exact = bounds(clean), in_ticks(exact_bounds(clean))
    assert (np.diff(found) > 0).all()
    assert all(0 <= e - f < 1 for f, e in zip(found.tolist(), exact, strict=True))
    rewards = np.arange(1.0, 20.0)
    merged = project(rewards, found, bounds([(0, 1), (1, 2), (2, 3)]))
    # 1; 2 + … + 18 = 170; 19
    np.testing.assert_allclose(merged, [1.0, 170.0, 19.0], rtol=1e-12)


def test_rewards_after_the_oracles_cut_are_unknown_and_a_token_across_it_has_the_known_part() -> None:
    # the oracle saw "abcd" of "abcdefgh"; "cdef" is known in its half, "gh" not at all
    source, target = bounds([(0, 2), (2, 4)]), bounds([(0, 2), (2, 6), (6, 8)])
    np.testing.assert_array_equal(project([1.0, 2.0], source, target), [1.0, 2.0, np.nan])
    np.testing.assert_array_equal(project_mask([True, True], source, target), [1.0, 0.5, np.nan])


def test_a_token_that_starts_where_a_truncated_oracle_ends_is_unknown() -> None:
    source, target = bounds([(0, 2)]), bounds([(0, 2), (2, 3)])
    np.testing.assert_array_equal(project([1.0], source, target), [1.0, np.nan])


def test_a_truncated_policy_loses_the_rewards_after_its_end() -> None:
    # the policy sees "abc" of "abcdef"; of "cdef" with 4.0 it has one character in four
    source, target = bounds([(0, 2), (2, 6)]), bounds([(0, 3)])
    assert project([1.0, 4.0], source, target).tolist() == [2.0]


def test_without_oracle_tokens_all_is_unknown_and_without_policy_tokens_there_is_nothing() -> None:
    none, some = bounds([]), bounds([(0, 1), (1, 2)])
    assert np.isnan(project([], none, some)).tolist() == [True, True]
    assert np.isnan(project_mask([], none, some)).tolist() == [True, True]
    assert project([1.0, 2.0], some, none).tolist() == []


# what must hold for any spans

TEXT = st.text(alphabet="ab \n\u0301\0😀", min_size=1, max_size=30)


@st.composite
def raw_spans(draw: st.DrawFn, text: str) -> Spans:
    size = draw(st.integers(1, 12))
    points = st.lists(st.integers(0, len(text)), min_size=size, max_size=size).map(sorted)
    starts, ends = draw(points), draw(points)
    return [(min(s, e), e) for s, e in zip(starts, ends, strict=True)]


@st.composite
def texts_with_spans(draw: st.DrawFn) -> tuple[str, Spans]:
    text = draw(TEXT)
    return text, draw(raw_spans(text))


@st.composite
def tokenizations(draw: st.DrawFn, *, truncated: bool = True) -> tuple[Spans, Spans]:
    """Clean spans of two tokenizations of one text; if ``truncated``, either may see only its beginning."""
    text = draw(TEXT)
    ends = [len(text), draw(st.integers(1, len(text))) if truncated else len(text)]
    seen = draw(st.permutations([text[:end] for end in ends]))
    source, target = (spans(part, draw(raw_spans(part))) for part in seen)
    return source, target


@st.composite
def cuts(draw: st.DrawFn) -> Bounds:
    """Arbitrary bounds, all ending at 1,000."""
    inner = draw(st.sets(st.integers(1, 999), max_size=12))
    return np.array([0, *sorted(inner), 1000], dtype=np.int64)


def rewards_of(data: st.DataObject, size: int) -> list[float]:
    return data.draw(st.lists(REWARD, min_size=size, max_size=size))


def mask_of(data: st.DataObject, size: int) -> list[bool]:
    return data.draw(st.lists(st.booleans(), min_size=size, max_size=size))


@given(texts_with_spans())
def test_clean_spans_cover_the_text_in_order_and_stay_clean(case: tuple[str, Spans]) -> None:
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


@given(texts_with_spans())
def test_bounds_cover_the_text_and_are_the_exact_ones(case: tuple[str, Spans]) -> None:
    text, raw = case
    clean = spans(text, raw)
    found = bounds(clean)
    assert (found[0], found[-1], found.size) == (0, len(text) * TICKS, len(raw) + 1)
    assert (np.diff(found) > 0).all()
    assert found.tolist() == in_ticks(exact_bounds(clean))


@given(tokenizations())
def test_overlaps_are_those_of_every_token_with_every_other(case: tuple[Spans, Spans]) -> None:
    source, target = bounds(case[0]).tolist(), bounds(case[1]).tolist()
    expected = [
        (i, j, min(source[i + 1], target[j + 1]) - max(source[i], target[j]))
        for i in range(len(source) - 1)
        for j in range(len(target) - 1)
        if min(source[i + 1], target[j + 1]) > max(source[i], target[j])
    ]
    found = overlaps(bounds(case[0]), bounds(case[1]))
    assert list(zip(*(column.tolist() for column in found), strict=True)) == expected


@given(tokenizations(), st.data())
def test_projection_is_the_exact_one_and_loses_only_what_it_drops(
    case: tuple[Spans, Spans], data: st.DataObject
) -> None:
    source, target = map(exact_bounds, case)
    rewards = rewards_of(data, len(case[0]))
    found = project(rewards, bounds(case[0]), bounds(case[1]))
    scale = sum(map(abs, rewards))
    assert_like(found, exact_project(rewards, source, target), scale)
    # unknown: exactly the tokens that begin at or behind the oracle's end
    assert np.isnan(found).tolist() == [begin >= source[-1] for begin in target[:-1]]
    dropped = float(exact_dropped(rewards, source, target[-1]))
    assert abs(np.nansum(found) + dropped - sum(rewards)) <= 1e-9 * scale


@given(tokenizations(), st.data())
def test_projected_masks_are_the_exact_ones(case: tuple[Spans, Spans], data: st.DataObject) -> None:
    mask = mask_of(data, len(case[0]))
    found = project_mask(mask, bounds(case[0]), bounds(case[1]))
    assert_like(found, exact_project_mask(mask, *map(exact_bounds, case)), 1.0)


@given(texts_with_spans(), st.data())
def test_equal_spans_give_the_same_rewards_and_mask_bit_for_bit(
    case: tuple[str, Spans], data: st.DataObject
) -> None:
    own = bounds(spans(*case))
    rewards, mask = rewards_of(data, own.size - 1), mask_of(data, own.size - 1)
    assert project(rewards, own, own.copy()).tobytes() == np.array(rewards).tobytes()
    assert project_mask(mask, own, own.copy()).tolist() == mask


@given(tokenizations(), st.data())
def test_projection_is_linear(case: tuple[Spans, Spans], data: st.DataObject) -> None:
    source, target = map(bounds, case)
    first, second = (np.array(rewards_of(data, source.size - 1)) for _ in range(2))
    together = project(2 * first - 3 * second, source, target)
    apart = 2 * project(first, source, target) - 3 * project(second, source, target)
    np.testing.assert_allclose(together, apart, rtol=0, atol=1e-11)


@given(cuts(), cuts())
def test_a_reward_for_each_tick_stays_one_for_each_tick(source: Bounds, target: Bounds) -> None:
    np.testing.assert_allclose(project(np.diff(source), source, target), np.diff(target), rtol=1e-12)


@given(cuts(), cuts(), cuts(), st.data())
def test_the_way_over_finer_tokens_changes_nothing(
    coarse: Bounds, extra: Bounds, other: Bounds, data: st.DataObject
) -> None:
    fine = np.union1d(coarse, extra)
    rewards = rewards_of(data, coarse.size - 1)
    between = project(rewards, coarse, fine)
    np.testing.assert_allclose(project(between, fine, coarse), rewards, rtol=0, atol=1e-12)
    direct = project(rewards, coarse, other)
    np.testing.assert_allclose(project(between, fine, other), direct, rtol=0, atol=1e-11)


@given(tokenizations(), st.data())
def test_a_reward_reaches_only_the_tokens_that_overlap_its_own(
    case: tuple[Spans, Spans], data: st.DataObject
) -> None:
    source, target = map(bounds, case)
    rewards = rewards_of(data, source.size - 1)
    i = data.draw(st.integers(0, source.size - 2))
    before = project(rewards, source, target)
    after = project([r + (k == i) for k, r in enumerate(rewards)], source, target)
    touched = (target[:-1] < source[i + 1]) & (target[1:] > source[i])
    assert (after[touched] > before[touched]).all()
    assert after[~touched].tobytes() == before[~touched].tobytes()


@given(tokenizations(truncated=False), tokenizations(), st.data())
def test_text_after_the_end_changes_no_token_before_it(
    head: tuple[Spans, Spans], tail: tuple[Spans, Spans], data: st.DataObject
) -> None:
    length = head[0][-1][1]
    source, target = (
        [*h, *((s + length, e + length) for s, e in t)] for h, t in zip(head, tail, strict=True)
    )
    rewards = rewards_of(data, len(source))
    whole = project(rewards, bounds(source), bounds(target))
    alone = project(rewards[: len(head[0])], bounds(head[0]), bounds(head[1]))
    assert whole[: alone.size].tobytes() == alone.tobytes()


@given(tokenizations(), st.data())
def test_masks_are_nested_and_the_rest_is_not_selected(
    case: tuple[Spans, Spans], data: st.DataObject
) -> None:
    source, target = map(bounds, case)
    mask = np.array(mask_of(data, source.size - 1))
    share, rest = (project_mask(marked, source, target) for marked in (mask, ~mask))
    every, majority, some = share == 1, share >= 0.5, share > 0
    assert (every <= majority).all()
    assert (majority <= some).all()
    inside = target[1:] <= source[-1]  # a token over the oracle's end is neither selected nor not in its tail
    assert (every == (rest == 0))[inside].all()
    assert (some == (rest < 1))[inside].all()
    np.testing.assert_allclose((share + rest)[inside], 1, rtol=1e-15)
    known = target[:-1] < source[-1]
    assert (project_mask(np.zeros_like(mask), source, target)[known] == 0).all()
    assert (project_mask(np.ones_like(mask), source, target)[inside] == 1).all()
    assert np.isnan(share[~known]).all()


# real tokenizers

TEXTS = [*dict.fromkeys(CORPUS), *NASTY]
AS_REPORTED = "byte_bpe_nfc_trimmed, trimmed"  # with the blanks that its offsets leave out
TOKENIZERS = [*FAMILIES, AS_REPORTED]
LOSSY = {"unigram_nfkc", "wordpiece"}  # they leave no token of some texts


@cache
def tiny_encoder(family: str) -> ResponseEncoder:
    return response_encoder(tiny_tokenizer(family, None))


def tokenized(name: str, text: str, max_length: int = 10**6) -> Spans | None:
    """Clean spans of the text's tokens; None if there are none."""
    if name == AS_REPORTED:
        backend = tiny_tokenizer(FAMILIES[1]).backend_tokenizer
        return spans(text, backend.encode(text, add_special_tokens=False).offsets)
    rendering = RenderedChat(("Say it:\n", ""), (Part("content", ""),), ((), ()))
    [found] = encode_responses(tiny_encoder(name), [rendering.ending_in(text)], max_length)
    if not isinstance(found, EncodedResponse):
        return None
    return list(zip(found.token_start.tolist(), found.token_end.tolist(), strict=True))


@cache
def all_bounds(name: str) -> list[Bounds | None]:
    return [None if clean is None else bounds(clean) for clean in (tokenized(name, text) for text in TEXTS)]


def test_the_tokenizers_leave_the_gaps_and_share_the_characters_that_the_rest_is_about() -> None:
    raw = {family: tiny_tokenizer(family).backend_tokenizer.encode("Hi  😀.").offsets for family in FAMILIES}
    assert raw["byte_bpe"].count((4, 5)) >= 2
    assert raw["sentencepiece_bpe"].count((4, 5)) == 4
    assert any(start == end for start, end in raw["byte_bpe_nfc_trimmed"])  # a trimmed blank
    assert sum(end - start for start, end in raw["wordpiece"]) < len("Hi  😀.")


@pytest.mark.parametrize("name", TOKENIZERS)
def test_the_bounds_of_every_tokenizer_cover_every_text(name: str) -> None:
    for text, found in zip(TEXTS, all_bounds(name), strict=True):
        if found is None:
            assert name in LOSSY, repr(text)
            continue
        assert (found[0], found[-1]) == (0, len(text) * TICKS), repr(text)
        assert (np.diff(found) > 0).all(), repr(text)
    assert sum(found is not None for found in all_bounds(name)) > 40


@pytest.mark.parametrize("policy", TOKENIZERS)
@pytest.mark.parametrize("oracle", TOKENIZERS)
def test_every_text_keeps_its_reward_from_every_tokenizer_to_every_other(oracle: str, policy: str) -> None:
    rng = np.random.default_rng(0)
    for source, target in zip(all_bounds(oracle), all_bounds(policy), strict=True):
        if source is None or target is None:
            continue
        rewards = rng.standard_t(3, size=source.size - 1)
        mask = rng.random(rewards.size) < 0.3
        found, share = project(rewards, source, target), project_mask(mask, source, target)
        assert abs(found.sum() - rewards.sum()) <= 1e-9 * np.abs(rewards).sum()
        assert share.min() >= 0
        assert share.max() <= 1
        if np.array_equal(source, target):
            assert found.tobytes() == rewards.tobytes()
            assert (share == mask).all()
        else:
            assert oracle != policy


PIECES = [
    *CORPUS[:6],
    " ",
    "  ",
    "\n",
    "e\u0301",
    "ﬁ",
    "😀",
    "👩🏽\u200d💻",
    "中文",
    "▁",
    "\0",
    "Ⅳ",
    "…",
    "<|im_end|>",
]
REAL = st.lists(st.sampled_from(PIECES), min_size=1, max_size=5).map("".join) | st.text(
    min_size=1, max_size=20
)


@settings(max_examples=50)
@given(REAL, st.sampled_from(TOKENIZERS), st.sampled_from(FAMILIES), st.integers(6, 60), st.data())
def test_any_text_projects_as_the_exact_reference_does_truncated_or_not(
    text: str, oracle: str, policy: str, max_length: int, data: st.DataObject
) -> None:
    longest = [10**6, max_length] if data.draw(st.booleans()) else [max_length, 10**6]
    source, target = (tokenized(*side) for side in zip((oracle, policy), (text, text), longest, strict=True))
    assume(source is not None and target is not None)
    assert source is not None
    assert target is not None
    rewards = rewards_of(data, len(source))
    exact = exact_bounds(source), exact_bounds(target)
    found = project(rewards, bounds(source), bounds(target))
    scale = sum(map(abs, rewards))
    assert_like(found, exact_project(rewards, *exact), scale)
    dropped = float(exact_dropped(rewards, exact[0], exact[1][-1]))
    assert abs(np.nansum(found) + dropped - sum(rewards)) <= 1e-9 * scale
