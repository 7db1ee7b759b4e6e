"""The question files of benchmarks, and the answer files that their own judges take.

Sources: alpaca_eval 0.6.6 (``main.py``), FastChat 0.2.36 (``llm_judge/common.py``, ``gen_model_answer.py``)
and Arena-Hard-Auto (``gen_answer.py``; v0.1 knows questions by ``question_id``, v2 by ``uid``). Time stamps
are 0 and ids of answers are hashes, so that equal answers are equal files.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from ..errors import PreferenceError, SettingsError
from ..files import text_sha256
from ..schema import Message

Format = Literal["alpaca-eval", "arena-hard", "mt-bench", "jsonl"]
FORMATS: tuple[Format, ...] = get_args(Format)

# FastChat's ``temperature_config``; other categories are sampled at 0.7 there
MT_BENCH_TEMPERATURES = {
    **dict.fromkeys(("writing", "roleplay"), 0.7),
    **dict.fromkeys(("extraction", "math", "coding", "reasoning"), 0.0),
    **dict.fromkeys(("stem", "humanities"), 0.1),
}
MT_BENCH_OTHER = 0.7

Row = dict[str, Any]


@dataclass(frozen=True)
class Question:
    """What a model is asked.

    Attributes:
        context: Messages before the first turn: a system message, or a conversation.
        turns: What the user says; the model answers each.
        temperature: What the benchmark samples it at; None: it does not say.
        row: The row of the file.
    """

    context: list[Message]
    turns: list[str]
    temperature: float | None
    row: Row


def read_questions(path: Path, kind: Format) -> list[Question]:
    """Read a benchmark's question file.

    Raises:
        SettingsError: If the format is unknown.
        PreferenceError: If the file cannot be read, or is another benchmark's.
    """
    if kind not in FORMATS:
        raise SettingsError(f'`format` "{kind}" is not one of {", ".join(FORMATS)}.')
    rows = _rows(path)
    found = []
    for number, row in enumerate(rows):
        question = _READERS[kind](row)
        if question is None:
            other = next((name for name in FORMATS if name != kind and _READERS[name](row)), None)
            looks = f", and looks like {other}: pass `format={other}`" if other else ""
            raise PreferenceError(f"{path}: question {number} is not in the {kind} format{looks}.")
        found.append(question)
    if not found:
        raise PreferenceError(f"{path}: holds no question.")
    return found


def answer_file(kind: Format, questions: list[Question], answers: list[list[str]], model: str) -> str:
    """The content of the file that the benchmark's judge takes.

    Args:
        kind: Which benchmark.
        questions: From `read_questions`.
        answers: To each question, one for each of its turns.
        model: What the judge is to call the model.
    """
    rows = [_WRITERS[kind](one, answer, model) for one, answer in zip(questions, answers, strict=True)]
    if kind == "alpaca-eval":
        return json.dumps(rows, indent=1, ensure_ascii=False) + "\n"
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _rows(path: Path) -> list[Row]:
    """The objects of a JSON list, or of JSON lines."""
    try:
        text = path.read_text(encoding="utf-8")
        if text.lstrip().startswith("["):
            rows = json.loads(text)
        else:
            rows = [json.loads(line) for line in text.splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise PreferenceError(
            f"{path}: cannot be read ({reason}). Give a JSON list, or JSON lines."
        ) from error
    if not all(isinstance(row, dict) for row in rows):
        raise PreferenceError(f"{path}: holds something else than objects. Give a JSON list, or JSON lines.")
    return list(rows)


def _texts(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, str) for item in value)


def _alpaca_eval(row: Row) -> Question | None:
    text = row.get("instruction")
    return Question([], [text], None, row) if isinstance(text, str) else None


def _arena_hard(row: Row) -> Question | None:
    if isinstance(row.get("prompt"), str) and "uid" in row:
        return Question([], [row["prompt"]], 0.0, row)
    turns = row.get("turns")
    if "question_id" not in row or not isinstance(turns, list) or not turns:
        return None
    texts = [turn.get("content") if isinstance(turn, dict) else None for turn in turns]
    return Question([], [str(text) for text in texts], 0.0, row) if _texts(texts) else None


def _mt_bench(row: Row) -> Question | None:
    if not {"question_id", "category"} <= row.keys() or not _texts(row.get("turns")):
        return None
    return Question([], row["turns"], MT_BENCH_TEMPERATURES.get(row["category"], MT_BENCH_OTHER), row)


def _plain(row: Row) -> Question | None:
    prompt = row.get("prompt")
    if isinstance(prompt, str):
        return Question([], [prompt], None, row)
    if not isinstance(prompt, list) or not prompt:
        return None
    known = all(isinstance(turn, dict) and isinstance(turn.get("content"), str) for turn in prompt)
    if not known or not all(isinstance(turn.get("role"), str) for turn in prompt):
        return None
    *context, last = prompt
    return Question(context, [last["content"]], None, row) if last["role"] == "user" else None


def _as_alpaca_eval(question: Question, answers: list[str], model: str) -> Row:
    named = {key: value for key, value in question.row.items() if key in ("dataset", "instruction")}
    return {**named, "output": answers[0], "generator": model}


def _as_arena_hard(question: Question, answers: list[str], model: str) -> Row:
    if "uid" not in question.row:
        turns = [{"content": answer} for answer in answers]
        return _as_choices(question, answers, model, turns)
    messages = [
        {"role": "user", "content": question.turns[0]},
        {"role": "assistant", "content": {"answer": answers[0]}},
    ]
    return {
        "uid": question.row["uid"],
        "ans_id": _answer_id(question, answers, model),
        "model": model,
        "messages": messages,
        "tstamp": 0.0,
    }


def _as_mt_bench(question: Question, answers: list[str], model: str) -> Row:
    return _as_choices(question, answers, model, answers)


def _as_choices(question: Question, answers: list[str], model: str, turns: object) -> Row:
    return {
        "question_id": question.row["question_id"],
        "answer_id": _answer_id(question, answers, model),
        "model_id": model,
        "choices": [{"index": 0, "turns": turns}],
        "tstamp": 0.0,
    }


def _as_plain(question: Question, answers: list[str], model: str) -> Row:
    return {**question.row, "response": answers[0], "generator": model}


def _answer_id(question: Question, answers: list[str], model: str) -> str:
    return text_sha256(json.dumps([question.turns, answers, model]))[:22]  # as long as theirs


_READERS = {
    "alpaca-eval": _alpaca_eval,
    "arena-hard": _arena_hard,
    "mt-bench": _mt_bench,
    "jsonl": _plain,
}
_WRITERS = {
    "alpaca-eval": _as_alpaca_eval,
    "arena-hard": _as_arena_hard,
    "mt-bench": _as_mt_bench,
    "jsonl": _as_plain,
}
