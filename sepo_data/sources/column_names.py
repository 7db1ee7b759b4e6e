"""Common names for the columns of pairs and conversations, besides prompt, chosen, rejected and messages."""

import re
from collections.abc import Iterator, Sequence

Tags = tuple[str, str]  # what tells the names of two responses apart

_BETTER_WORSE = (  # words that tell two columns apart, and say which of them is preferred
    ("chosen", "rejected"),
    ("accepted", "rejected"),
    ("preferred", "dispreferred"),
    ("preferred", "rejected"),
    ("better", "worse"),
    ("winning", "losing"),
    ("winner", "loser"),
    ("win", "lose"),
    ("positive", "negative"),
    ("good", "bad"),
    ("best", "worst"),
    ("selected", "rejected"),
    ("preferred", "unpreferred"),
)
_NEED_A_NOUN = (
    "winner",
    "win",
    "positive",
    "good",
    "best",
    "selected",
)  # alone: perhaps a verdict, or a retrieval dataset's
_IRREGULAR_SIDES = (
    ("preferred_output", "non_preferred_output"),  # OpenAI's DPO files
    ("response_j", "response_k"),  # stack-exchange-paired: j is the better one
    ("good_edited_response", "bad_edited_response"),  # HelpSteer3's edits
    ("y_w", "y_l"),  # as papers write them
    ("messages", "rejected_messages"),  # ms-swift: the conversation itself is the preferred one
    ("messages", "rejected_response"),
)
# Names of a prompt, in no order: two of them in one dataset are refused. Those of texts may also hold a part
# of the prompt that stands beside it.
PROMPT_TEXTS = ("question", "instruction", "query", "problem", "input", "inputs", "context")
PROMPTS = (
    *PROMPT_TEXTS, "user_prompt", "context_messages", "history", "trajectory", "messages", "conversations",
    "conversation",
)  # fmt: skip
COMPLETIONS = (
    "completion", "response", "output", "solution", "generated_solution", "answer", "target", "targets",
)  # fmt: skip
ANSWERS = (
    "completions",
    "answers",
    "responses",
    "generations",
    "candidates",
    "outputs",
    "samples",
    "summaries",
)  # of one prompt
# Scores, in order of precedence: of one of several answers to a prompt, and of the two
# responses of a row, there without the word that tells the two apart.
_MORE_SCORES = (
    *(f"{whose}_{what}" for what in ("score", "rating", "reward") for whose in (
        "rm", "reward_model", "pm", "judge", "llm", "gpt_4", "human", "preference", "quality", "overall",
        "average", "avg", "mean", "total", "final", "weighted", "armorm")),
    "reward_score", "armorm", "votes", "upvotes", "likes", "elo",
)  # fmt: skip
ANSWER_SCORES = (
    "overall_score", "score", "scores", "rating", "ratings", "quality", "reward", "rewards", "rm_scores",
    "fine-grained_score", "pm_score", "helpfulness", *_MORE_SCORES, "label", "labels", "kto_tag", "rank",
    "ranks", "ranking", "rankings",
)  # fmt: skip
RESPONSE_SCORES = (
    "score", "rating", "avg_rating", "overall_score", "quality", "helpfulness", "reward", *_MORE_SCORES,
    "winner_model", "winner", "label", "rank", "ranking",
)  # fmt: skip
SCORE_COLUMNS = {"score", "scores", "rating", "ratings", "reward", "rewards", "rank", "ranks"}  # of both
BEST_ANSWERS = (  # the index of the best one
    "best", "best_index", "best_response", "chosen_index", "chosen", "choice", "label", "preferred",
)  # fmt: skip
MARGINS = ("margin", "score_diff", "score_difference")  # by how much the chosen response is the better one
TIES = ("tie", "is_tie")
LOOSE_VERDICTS = (  # not worth a refusal where another column decides
    "preferred", "preferred_response", "better", "better_response", "best", "best_response", "selected",
    "chosen", "judgment", "judgement", "ranking", "human_preference", *TIES, *MARGINS,
)  # fmt: skip
VERDICTS = (
    "winner", "better_response_id", "safer_response_id", "preference", "overall_preference",
    "overall_pref", "preference_strength", "labels", "label", "choice", "verdict", "status", *LOOSE_VERDICTS,
)  # fmt: skip
CHATS = ("messages", "conversations", "conversation")
SYSTEMS = ("system", "system_prompt", "system_message")
CONTEXT = (*SYSTEMS, "tools", "chat_template_kwargs")

_RESPONSES = {
    "response", "answer", "completion", "output", "conversation", "human_ref", "text", "generation", "reply",
    "summary", "candidate", "assistant", "message", "conv",
}  # fmt: skip
_TAGS: tuple[Tags, ...] = (("a", "b"), ("0", "1"), ("1", "2"), ("first", "second"), ("left", "right"))
_THIRD = {"b": "c", "1": "2", "2": "3", "second": "third"}


def tags_of(first: str, second: str) -> Tags | None:
    """The words in which two column names differ; None unless they differ in one word only.

    Example:
        >>> tags_of("response_B", "response_A")
        ('b', 'a')
    """
    one, two = _words(first), _words(second)
    if len(one) != len(two):
        return None
    apart = [pair for pair in zip(one, two, strict=True) if pair[0] != pair[1]]
    return apart[0] if len(apart) == 1 and tuple(sorted(apart[0])) in _TAGS else None


def response_pairs(names: Sequence[str]) -> Iterator[tuple[str, str, Tags]]:
    """Pairs of response columns whose names do not say which is better: ``response_a``, ``response_b``."""
    for first in names:
        for second in names:
            tags = tags_of(first, second)
            if tags is not None and tags in _TAGS and _stem(first, tags[0]) in _RESPONSES:
                yield first, second, tags


def sides_by_name(names: Sequence[str]) -> tuple[str, str] | None:
    """The columns named chosen and rejected, or a synonym of these.

    Example:
        >>> sides_by_name(["prompt", "Winning Response", "Losing Response"])
        ('Winning Response', 'Losing Response')
    """
    by_words = {tuple(_words(name)): name for name in reversed(names)}
    for better, worse in _BETTER_WORSE:
        for words in sorted(by_words, key=len):
            other = by_words.get(tuple(worse if word == better else word for word in words))
            noun = "_".join(word for word in words if word != better).removesuffix("s")
            named = noun in _RESPONSES or (not noun and better not in _NEED_A_NOUN)
            if better in words and other is not None and named:
                return by_words[words], other
    return next((pair for pair in _IRREGULAR_SIDES if set(pair) <= set(names)), None)


def third_response(names: Sequence[str], pair: tuple[str, str], tags: Tags) -> str | None:
    """A third response next to two: ``response_c`` next to ``response_a`` and ``response_b``."""
    third = _THIRD.get(tags[1])
    words = [third if word == tags[1] else word for word in _words(pair[1])]
    return next((name for name in names if third and _words(name) == words), None)


def is_ordered(tags: Tags) -> bool:
    """Whether two words, in either order, say which response is the first: ``b`` and ``a``."""
    return tuple(sorted(tags)) in _TAGS


def counterpart(name: str, tags: Tags, names: Sequence[str]) -> str | None:
    """The same column of the other response: ``score_rejected`` for ``score_chosen``; None without one."""
    words = _words(name)
    other = [tags[1] if word == tags[0] else word for word in words]
    return next((found for found in names if words != other == _words(found)), None)


def score_of(name: str, tag: str) -> str:
    """The score in the name of a response's score column.

    Example:
        >>> score_of("conv_A_rating", "a"), score_of("label_0", "0")
        ('rating', 'label')
    """
    words = [word for word in _words(name) if word != tag]
    return "_".join([word for word in words if word.removesuffix("s") not in _RESPONSES] or words)


def belongs_behind(prompts: Sequence[str]) -> bool:
    """Whether the second of two prompt columns continues the first, as in Alpaca and Dolly."""
    return tuple(prompts) in (("instruction", "input"), ("instruction", "context"))


def usual_names(names: Sequence[str]) -> dict[str, str]:
    """Columns to rename: those that differ from a usual name only in case or word separators.

    Example:
        >>> usual_names(["Prompt", "userPrompt", "Chosen Response", "chosen_response"])
        {'Prompt': 'prompt'}
    """
    usual = {"prompt", *PROMPTS, *COMPLETIONS, *ANSWERS, *CHATS, *CONTEXT}
    plain = {name: "_".join(_words(name)) for name in names}
    taken = [*names, *plain.values()]
    return {
        name: other
        for name, other in plain.items()
        if other in usual and name != other and other not in names and taken.count(other) == 1
    }


def is_usual(name: str) -> bool:
    """Whether a name is that of a column of prompts, responses or conversations."""
    usual = {"prompt", *PROMPTS, *COMPLETIONS, *ANSWERS, *CHATS, *CONTEXT}
    words = _words(name)
    return "_".join(words) in usual or any(word in words for pair in _BETTER_WORSE for word in pair)


def _stem(name: str, tag: str) -> str:
    return "_".join(word for word in _words(name) if word != tag).removesuffix("s")


def _words(name: str) -> list[str]:
    apart = re.sub(r"(?<=[a-z])(?=[A-Z0-9])", "_", name)
    return re.split(r"[_\-. ]+", apart.strip().lower())
