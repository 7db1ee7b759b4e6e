"""How rows in other pair formats are converted to prompt, chosen and rejected."""

from dataclasses import dataclass
from typing import cast

from ..reasons import Reason, Unusable
from ..schema import Message, Row
from .column_kinds import Column, Content
from .mending import Mended
from .verdicts import Verdict

LISTED = "texts taken out of the lists that hold them"
UNDOUBLED = "prompts that both responses repeated, taken out of them"


@dataclass(frozen=True)
class PairLayout:
    """Where a source keeps its pair.

    Attributes:
        prompt: Column of the prompt; None if the prompt is part of the other two.
        chosen: Column of the preferred response.
        rejected: Column of the other response.
        input: Column of a text to append to the prompt, as in Alpaca's datasets.
        repeats_prompt: Whether both responses begin with the text of the prompt.
        transcripts: Whether both responses are transcripts that contain the prompt.
        verdict: Columns that say which response is better, if the names of the two do not.
    """

    prompt: Column | None
    chosen: Column
    rejected: Column
    input: Column | None = None
    repeats_prompt: bool = False
    transcripts: bool = False
    verdict: Verdict | None = None

    @property
    def columns(self) -> list[Column]:
        """The columns that exist."""
        return [
            column for column in (self.prompt, self.input, self.chosen, self.rejected) if column is not None
        ]

    @property
    def as_it_is(self) -> bool:
        """Whether rows can be read without conversion."""
        of_sides = {self.chosen.kind, self.rejected.kind}
        lone = self.prompt is not None and self.prompt.kind == "messages" and of_sides == {"text"}
        plain = all(column.as_it_is for column in self.columns) and self.input is None
        changed = lone or self.repeats_prompt or self.transcripts or self.verdict is not None
        return plain and len(of_sides) == 1 and not changed

    @property
    def decided_by(self) -> str | None:
        """Which columns decide the better response, for the manifest."""
        if self.verdict is None or not self.verdict.decides:
            return None
        least = "" if self.verdict.min_margin is None else f", from a margin of {self.verdict.min_margin:g}"
        return f"{self.chosen.name} and {self.rejected.name}, by {self.verdict.words}{least}"

    def make(self, row: Row, repaired: set[str]) -> Mended:
        """A row's prompt, chosen and rejected, as text or messages."""
        made = self._pair(row, repaired)
        if self.verdict is None or isinstance(made, Unusable):
            return made
        margin = self.verdict.margin(row)
        if margin is not None and margin < 0:
            made = {**made, "chosen": made["rejected"], "rejected": made["chosen"]}
        return self.verdict.judge(margin) or made

    def _pair(self, row: Row, repaired: set[str]) -> Mended:
        read = {column.name: column.read(row, repaired) for column in self.columns}
        for content in read.values():
            if isinstance(content, Unusable):
                return content
        found = cast("dict[str, Content]", read)
        prompt = found[self.prompt.name] if self.prompt is not None else None
        chosen, rejected = found[self.chosen.name], found[self.rejected.name]
        if self.input is not None and isinstance(prompt, str) and (more := found[self.input.name]):
            prompt = f"{prompt}\n{more}"
        if {self.prompt and self.prompt.kind, self.chosen.kind, self.rejected.kind} == {"turns"}:
            return _interleaved(prompt, chosen, rejected)
        prompt, chosen, rejected = (_lone_text(one, repaired) for one in (prompt, chosen, rejected))
        if not chosen or not rejected:
            return Unusable(Reason.EMPTY_RESPONSE)
        if self.prompt is not None and not prompt:
            return Unusable(Reason.PROMPT_MISSING)
        if isinstance(chosen, str) and isinstance(rejected, str):
            if isinstance(prompt, list):
                chosen, rejected = [_answer(chosen)], [_answer(rejected)]
            elif self.repeats_prompt and prompt is not None:
                prompt, chosen, rejected = _undoubled(prompt, chosen, rejected, repaired)
        elif isinstance(chosen, str):
            chosen = [*rejected[:-1], _answer(chosen)]
        elif isinstance(rejected, str):
            rejected = [*chosen[:-1], _answer(rejected)]
        sides = {"chosen": chosen, "rejected": rejected}
        if not self.transcripts:
            return sides if self.prompt is None else {"prompt": prompt, **sides}
        held = all(isinstance(side, str) and str(prompt or "").strip() in side for side in sides.values())
        return sides if held else Unusable(Reason.PROMPT_DISAGREES)


def _undoubled(prompt: str, chosen: str, rejected: str, repaired: set[str]) -> tuple[str, str, str]:
    """Move the prompt out of both responses, so that prompt + response is the text given as the response."""
    stripped = prompt.rstrip()
    if not (chosen.startswith(stripped) and rejected.startswith(stripped)):
        return prompt, chosen, rejected
    end = len(stripped)
    while chosen[end : end + 1].isspace() and chosen[end : end + 1] == rejected[end : end + 1]:
        end += 1
    repaired.add(UNDOUBLED)
    return chosen[:end], chosen[end:], rejected[end:]


def _interleaved(prompt: Content, chosen: Content, rejected: Content) -> Mended:
    """Conversations from lists of texts: the user's turns, and the assistant's turns of either side."""
    if not (isinstance(prompt, list) and isinstance(chosen, list) and isinstance(rejected, list)):
        return Unusable(Reason.EMPTY_RESPONSE if prompt else Reason.PROMPT_MISSING)
    if not len(prompt) == len(chosen) == len(rejected):
        return Unusable(Reason.NO_COMMON_PROMPT)
    asked = [{"role": "user", "content": text} for text in prompt]
    return {
        "prompt": asked[:1],
        **{
            side: [turn for pair in zip(asked, map(_answer, texts), strict=True) for turn in pair]
            for side, texts in (("chosen", chosen), ("rejected", rejected))
        },
    }


def _lone_text(content: Content, repaired: set[str]) -> Content:
    """The text in a list of one text; anything else unchanged."""
    if isinstance(content, list) and len(content) == 1 and isinstance(content[0], str):
        repaired.add(LISTED)
        return content[0]
    return content


def _answer(text: object) -> Message:
    return {"role": "assistant", "content": text}
