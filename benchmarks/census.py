"""Nasty strings × tokenizers × chat templates: count wrong spans, conservation errors and dropped pairs.

    python benchmarks/census.py [--strings STRINGS.jsonl] [--template FILE.jinja]… TOKENIZER…

A tokenizer is a folder or a Hub id. Each is used with its own chat template (or the default that
training gives to a base model), with every ``--template``, and without one. STRINGS has a ``text``
per line; the default is the strings of the tests. Every string serves as response, as prompt, and as all
turns of a conversation, read, rendered and encoded as in ``sepo-annotate``.

The correct span of a token is found without offsets: its piece of the vocabulary is spelled out in
bytes and matched against the whole rendered text. A span is wrong if it differs from that, clipped to
the response. A character of several tokens belongs to each; inside text that a normaliser rewrote
(a letter and its marks) any cut is right; a character that no token spells may belong to either neighbour.
Also wrong: spans out of order or out of bounds, gaps, unscored tokens of the response, scored tokens
of the prompt, changed texts.
"""

import argparse
import json
import math
import re
import runpy
import sys
import tempfile
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import bytes_to_unicode

from sepo_data.projection import Bounds, partition, project
from sepo_data.sources.preferences import Pair, open_pairs
from sepo_data.tokens.encoder import ResponseEncoder, response_encoder
from sepo_data.tokens.encoding import EncodedResponse
from sepo_data.tokens.pairs import encode_pairs
from sepo_data.tokens.templates import set_chat_template

SHOWN = 20  # wrong spans that are printed
EVERYTHING = 10**6  # tokens: nothing is cut
BLANKS = b" \n\r\t"
PROBE = "Here stands the 1 answer."

Row = dict[str, Any]
Messages = list[dict[str, str]]


@dataclass(frozen=True)
class Spelling:
    """How a tokenizer spells text, read from its tokenizer.json without offsets or any code under test.

    Attributes:
        pieces: The bytes that each id spells.
        unknown: Id of the unknown token, if there is one.
        added: Ids of added tokens with a literal text, including control tokens.
        added_texts: Pattern of those texts.
        normalise: Normalises a text, with blanks as in the vocabulary.
        canon: Replaces characters that the vocabulary cannot distinguish from a space.
        drops_blanks: Whether blanks are dropped and words get a blank from the tokenizer.
    """

    pieces: dict[int, bytes]
    unknown: int | None
    added: frozenset[int]
    added_texts: re.Pattern[str]
    normalise: Callable[[str], str]
    canon: Callable[[str], str]
    drops_blanks: bool


def spelling_of(tokenizer: PreTrainedTokenizerBase) -> Spelling:
    """Read how a tokenizer spells its tokens."""
    backend = tokenizer.backend_tokenizer
    state = json.loads(backend.to_str())
    shape = json.dumps([state["normalizer"], state["pre_tokenizer"], state["decoder"]], ensure_ascii=False)
    byte_of = {character: byte for byte, character in bytes_to_unicode().items()}
    byte_level = '"ByteLevel"' in shape
    byte_name = re.compile("<0x[0-9A-F]{2}>" if state["model"].get("byte_fallback") else "(?!)")
    added = {
        token["id"]: token["content"]
        for token in state["added_tokens"]
        if not byte_name.fullmatch(token["content"])
    }
    if state["model"]["type"] == "WordPiece":
        raise SystemExit("WordPiece hides which words an unknown token is: no census of it.")

    def canon(text: str) -> str:
        return text if byte_level else text.replace("▁", " ")

    def spell(token: str) -> bytes:
        if byte_level:
            return bytes(byte_of[character] for character in token)
        if byte_name.fullmatch(token):
            return bytes.fromhex(token[3:5])
        return canon(token).encode()

    normalise = backend.normalizer.normalize_str if backend.normalizer else str
    at = len(normalise("q"))  # a normaliser may insert something before a text
    drops_blanks = re.search('"Whitespace(Split)?"', shape)

    @lru_cache(maxsize=10**5)
    def inside(text: str) -> str:
        return canon(normalise(f"q{text}q")[at : -len("q")])

    pieces = {i: spell(token) for token, i in backend.get_vocab().items() if i not in added}
    pieces |= {i: content.encode() for i, content in added.items()}
    longest_first = sorted(added.values(), key=len, reverse=True)
    texts = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
    unknown = state["model"].get("unk_id", backend.token_to_id(state["model"].get("unk_token") or ""))
    return Spelling(pieces, unknown, frozenset(added), texts, inside, canon, drops_blanks is not None)


def units(spelling: Spelling, text: str) -> list[tuple[int, int, str]]:
    """Split a text into the smallest pieces that are normalised independently: start, end, and result."""
    found: list[tuple[int, int, str]] = []
    cuts = [0, *(cut for match in spelling.added_texts.finditer(text) for cut in match.span()), len(text)]
    for lo, hi in pairwise(cuts):
        start = lo
        for i in range(lo, hi):
            unit, after = text[start : i + 1], text[i + 1 : min(i + 2, hi)]
            joined = spelling.normalise(unit + after) != spelling.normalise(unit) + spelling.normalise(after)
            if not after or not (joined or unicodedata.category(after)[0] == "M"):
                found.append((start, i + 1, spelling.normalise(unit)))
                start = i + 1
    return found


def bytes_of(spelling: Spelling, text: str) -> tuple[bytes, list[tuple[int, int]]]:
    """The bytes that tokens must spell, and the range in the text that each may occupy."""
    octets, places = bytearray(), []
    for start, end, form in units(spelling, text):
        same = re.sub(r"\s", " ", form) == re.sub(r"\s", " ", spelling.canon(text[start:end]))
        for i, character in enumerate(form):
            encoded = character.encode()
            octets += encoded
            places += [(start + i, start + i + 1) if same else (start, end)] * len(encoded)
    return bytes(octets), places


def spelled(spelling: Spelling, octets: bytes, ids: Sequence[int]) -> list[list[int]] | str:
    """The bytes of the text that each token spells, or where the token disagrees."""
    found: list[list[int]] = []
    at = 0
    for index, token in enumerate(ids):
        piece = spelling.pieces[token]
        own: list[int] = []
        if token in spelling.added:
            here = at if octets.startswith(piece, at) else _behind_blanks(octets, at)
            if octets.startswith(piece, here):
                own = [*range(here, here + len(piece))]
            elif token != spelling.unknown and index not in (0, len(ids) - 1):  # BOS and EOS may be added
                return f"token {index}, {piece!r}, stands where the text has {octets[at : at + 20]!r}"
        if token == spelling.unknown and not own:
            begin = _behind_blanks(octets, at) if spelling.drops_blanks else at
            own = [*range(begin, _end_of_unknown(spelling, octets, begin, ids[index + 1 :]))]
        elif token not in spelling.added:
            place = at
            for octet in piece:
                if octet in BLANKS and (spelling.drops_blanks or octets[place : place + 1] != bytes([octet])):
                    continue  # a blank that the tokenizer inserts before a word
                if octets[place : place + 1] != bytes([octet]):
                    place = _behind_blanks(octets, place)
                if octets[place : place + 1] != bytes([octet]):
                    return f"token {index}, {piece!r}, stands where the text has {octets[at : at + 20]!r}"
                own.append(place)
                place += 1
        found.append(own)
        at = own[-1] + 1 if own else at
    return found


def _behind_blanks(octets: bytes, at: int) -> int:
    return at + len(octets[at:]) - len(octets[at:].lstrip(BLANKS))


def _end_of_unknown(spelling: Spelling, octets: bytes, at: int, following: Sequence[int]) -> int:
    """An unknown token extends to where the next known one can start."""
    known = next((spelling.pieces[token] for token in following if token != spelling.unknown), b"")
    patterns = [rb"\s"] if spelling.drops_blanks else []  # words are separate
    if known and not (spelling.drops_blanks and known[0] in BLANKS):
        patterns.append(re.escape(known))
    match = re.compile(b"|".join(patterns) or b"$").search(octets, at + 1)
    return match.start() if match else len(octets)


def wrong_spans(
    spelling: Spelling, prefix: str, response: str, suffix: str, encoded: EncodedResponse
) -> list[str]:
    """Errors in the spans of one response in its context, one per line."""
    lo, hi = len(prefix), len(prefix) + len(response)
    start, end = encoded.token_start + lo, encoded.token_end + lo
    octets, places = bytes_of(spelling, prefix + response + suffix)
    ids = encoded.input_ids.tolist()
    owned = spelled(spelling, octets, ids)
    if isinstance(owned, str):
        return [owned]
    scored = encoded.positions[: start.size].tolist()
    wrong = []
    left = set(range(len(octets))).difference(*owned)
    if any(lo <= places[byte][0] and places[byte][1] <= hi and octets[byte] not in BLANKS for byte in left):
        wrong.append("some of the response is in no token")
    if not encoded.ended or encoded.positions.size != start.size + 1 or ids[-1] not in spelling.added:
        wrong.append("the end of the turn is not a control token, or is not scored")
    in_order = (np.diff(start) >= 0).all() and (np.diff(end) >= 0).all() and (end > start).all()
    if not (in_order and (start[0], end[-1]) == (lo, hi) and (start[1:] <= end[:-1]).all()):
        wrong.append("the spans do not cover the response in order")

    span_of = dict(zip(scored, zip(start.tolist(), end.tolist(), strict=True), strict=True))
    # text rewritten across a boundary ends there for tokens on either side
    ends = [max((_cut(places[byte], lo)[0] for byte in own), default=0) for own in owned]
    begins = [min((_cut(places[byte], hi)[1] for byte in own), default=hi) for own in owned]
    behind = np.minimum.accumulate([*begins[1:], hi][::-1])[::-1]  # where the next token's text begins
    before = np.maximum.accumulate([0, *ends[:-1]])  # where the text of those before ends
    for index, own in enumerate(owned):
        firmly = any(lo <= places[byte][0] and places[byte][1] <= hi for byte in own)
        if index not in span_of:
            if firmly and index != len(owned) - 1:
                wrong.append(f"token {index} is the response's and is not scored")
            continue
        if own and not any(places[byte][0] < hi and places[byte][1] > lo for byte in own):
            wrong.append(f"token {index} is scored and not the response's")
            continue
        if own:
            (first, first_to), (last, last_to) = places[own[0]], places[own[-1]]
            starts = (min(first, int(before[index])), first_to - 1)
            finishes = (last + 1, max(last_to, int(behind[index])))
        else:  # an inserted blank has no text and owns a character next to its place
            starts = (int(before[index]) - 1, int(behind[index]))
            finishes = (int(before[index]), int(behind[index]) + 1)
        found = span_of[index]
        allowed = [tuple(min(max(place, lo), hi) for place in bounds) for bounds in (starts, finishes)]
        if not all(least <= place <= most for place, (least, most) in zip(found, allowed, strict=True)):
            text = response[found[0] - lo : found[1] - lo]
            wrong.append(
                f"token {index}, {spelling.pieces[ids[index]]!r}: span {found[0] - lo} to {found[1] - lo}, "
                f"{text[:30]!r}, but it starts in {[place - lo for place in allowed[0]]} and ends in "
                f"{[place - lo for place in allowed[1]]}"
            )
    return wrong


def _cut(place: tuple[int, int], seam: int) -> tuple[int, int]:
    """End and start of a place, clipped to the boundary."""
    start, end = place
    return (seam, seam) if start < seam < end else (end, start)


def context(encoder: ResponseEncoder, prompt: str | Messages) -> tuple[str, str]:
    """The text around a response, rendered with an answer that no template changes."""
    if not encoder.chat_template:
        return str(prompt), ""
    turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    rendered = encoder.tokenizer.apply_chat_template(
        [*turns, {"role": "assistant", "content": PROBE}],
        tokenize=False,
        strftime_now=datetime(2024, 7, 26).strftime,  # the fixed date in sepo's prompts
    )
    prefix, suffix = str(rendered).split(PROBE)
    return prefix, suffix


def layouts(text: str, *, chat: bool) -> dict[str, Row]:
    """Use a string as response, as prompt, and as every turn (without a template: as both)."""
    no = f"No: {text}"
    user, says = {"role": "user", "content": text}, {"role": "assistant", "content": text}
    return {
        "response": {"prompt": "Repeat.", "chosen": text, "rejected": no},
        "prompt": {"prompt": text, "chosen": "Yes.", "rejected": "No."},
        "turns": {"prompt": [user, says, user], "chosen": [says], "rejected": [says | {"content": no}]}
        if chat
        else {"prompt": text, "chosen": text, "rejected": no},
    }


def repaired(value: Any) -> Any:
    """Texts as UTF-8 can hold them, with U+FFFD for lone surrogates."""
    if isinstance(value, str):
        return re.sub("[\ud800-\udfff]", "\ufffd", value)
    if isinstance(value, dict):
        return {key: repaired(item) for key, item in value.items()}
    return [repaired(item) for item in value]


@dataclass(frozen=True)
class Census:
    """Results for all strings with one tokenizer and template; bounds by layout, string and side."""

    spans: int
    wrong: list[str]
    dropped: Counter[str]
    bounds: dict[tuple[str, int, str], Bounds]


def take(encoder: ResponseEncoder, strings: list[str]) -> Census:
    """Run every string through one tokenizer and template."""
    spelling = spelling_of(encoder.tokenizer)
    census = Census(0, [], Counter(), {})
    spans = 0
    all_layouts = [layouts(text, chat=encoder.chat_template) for text in strings]
    for name in all_layouts[0]:
        rows = [found[name] for found in all_layouts]
        with tempfile.TemporaryDirectory() as place:
            data = Path(place) / "pairs.jsonl"
            data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
            source, columns = open_pairs(str(data))
            encoded = encode_pairs(source.rows, columns, encoder, EVERYTHING, 0, len(rows))
        census.dropped.update({reason: len(numbers) for reason, numbers in encoded.dropped.items()})
        for item in encoded.pairs:
            row = repaired(rows[item.row])
            if item.pair != Pair(**row):
                census.wrong.append(f"{name} {item.row}: the texts did not come through")
                continue
            prefix, suffix = context(encoder, row["prompt"])
            for side, found, response in (
                ("chosen", item.chosen, item.chosen.text),
                ("rejected", item.rejected, item.rejected.text),
            ):
                spans += found.token_start.size
                census.bounds[name, item.row, side] = partition(found.token_start, found.token_end)
                census.wrong.extend(
                    f"{name} {item.row} {response[:20]!r}, {side}: {line}"
                    for line in wrong_spans(spelling, prefix, response, suffix, found)
                )
    return Census(spans, census.wrong, census.dropped, census.bounds)


def conservation_error(source: Census, targets: Sequence[Census]) -> float:
    """Largest change of a sum of random rewards, in roundings of the sum of |reward|; inf is a failure.

    It fails if the reward of a token is unknown, or if equal spans do not give bit-identical rewards.
    """
    rng, worst = np.random.default_rng(0), 0.0
    for target in targets:
        for key in sorted(source.bounds.keys() & target.bounds.keys()):
            ours, theirs = source.bounds[key], target.bounds[key]
            rewards = rng.standard_t(3, size=ours.size - 1)
            found = project(rewards, ours, theirs)
            if np.isnan(found).any() or (np.array_equal(ours, theirs) and (found != rewards).any()):
                return math.inf
            moved = abs(math.fsum([*found, *-rewards]))
            worst = max(worst, moved / (math.fsum(np.abs(rewards)) * np.finfo(float).eps))
    return worst


def encoders(name: str, templates: Sequence[Path]) -> dict[str, ResponseEncoder]:
    """A tokenizer with each template, by the name of the template."""
    messages = pa.schema([("prompt", pa.list_(pa.string()))])
    found = {}
    for template in (None, *templates):
        tokenizer = AutoTokenizer.from_pretrained(name)
        own = "default" if tokenizer.chat_template is None else "own"
        set_chat_template(tokenizer, template or True, messages, name)
        found[template.name if template else own] = response_encoder(tokenizer)
    return {**found, "none": response_encoder(AutoTokenizer.from_pretrained(name), chat_template=False)}


def main(strings: Path | None, templates: list[Path], tokenizers: list[str]) -> int:
    """Print the table with the errors below it; return 1 if there are any."""
    if strings is None:
        texts = runpy.run_path(str(Path(__file__).parent.parent / "tests" / "nasty.py"))["NASTY"]
    else:
        texts = [json.loads(line)["text"] for line in strings.read_text("utf-8").splitlines()]
    found = {
        (Path(name).name, template): take(encoder, texts)
        for name in tokenizers
        for template, encoder in encoders(name, templates).items()
    }
    print("| tokenizer | template | pairs | spans | wrong | conservation error | dropped pairs |")
    print("|---|---|---|---|---|---|---|")
    worst = 0.0
    for (name, template), census in found.items():
        error = conservation_error(census, list(found.values()))
        worst = max(worst, error)
        print(_line([name, template], [census], error))
    print(_line(["all", ""], list(found.values()), worst))
    wrong = [f"{' '.join(key)}: {line}" for key, census in found.items() for line in census.wrong]
    for line in wrong[:SHOWN]:
        print(line, file=sys.stderr)
    return int(bool(wrong) or not math.isfinite(worst))


def _line(names: list[str], censuses: Sequence[Census], error: float) -> str:
    dropped = sum((census.dropped for census in censuses), Counter[str]())
    numbers = [
        sum(len(census.bounds) // 2 for census in censuses),
        sum(census.spans for census in censuses),
        sum(len(census.wrong) for census in censuses),
    ]
    reasons = "; ".join(f"{count} {reason}" for reason, count in sorted(dropped.items()))
    return f"| {' | '.join([*names, *(f'{n:,}' for n in numbers), f'{error:.1f}', reasons])} |"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--strings", type=Path)
    parser.add_argument("--template", type=Path, action="append", default=[])
    parser.add_argument("tokenizers", nargs="+")
    options = parser.parse_args()
    sys.exit(main(options.strings, options.template, options.tokenizers))
