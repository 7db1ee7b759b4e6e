"""The main path of `sepo generate`: questions in, the benchmark's answer file out, a chunk at a time.

A chunk is a batch. Its answers are on disk before the next begins, so that a run that is
killed repeats one chunk; with the same seed it ends in the same bytes as one that is not.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa

from ..errors import OutputError, described_differences
from ..files import file_sha256, json_bytes, name_of, renamed, write_atomically, writing
from ..schema import Message
from ..tokens.templates import set_chat_template
from .answering import Answerer, Conversation, Server
from .benchmarks import Question, answer_file, read_questions
from .settings import GenerateSettings


def generate(
    model: str,
    settings: GenerateSettings,
    *,
    on_chunk: Callable[[int, int], object] = lambda done, total: None,
) -> int:
    """Answer a benchmark's questions.

    The same call resumes where an earlier one stopped.

    Args:
        model: Hub id or folder; with a server, the server's name for it.
        settings: Everything else.
        on_chunk: Told how many of how many questions are answered.

    Returns:
        How many questions were answered.

    Raises:
        SepoError: One of its children, see `errors`.
    """
    questions = read_questions(settings.prompts, settings.format)[: settings.limit]
    output = settings.output
    if output.exists():
        raise OutputError(f"{output} is there already. Choose another `output`.")
    answerer = _answerer(model, questions, settings)
    work = output.with_name(f"{output.name}.work")
    with writing(output):
        work.mkdir(parents=True, exist_ok=True)
        _check_work(work, _identity(answerer, settings))
        answers: list[list[str]] = []
        for lo in range(0, len(questions), settings.batch_size):
            chunk = questions[lo : lo + settings.batch_size]
            path = work / f"{lo:06d}-{lo + len(chunk):06d}.json"
            answers += _kept(path) or _answer_chunk(path, answerer, chunk, settings, lo)
            on_chunk(len(answers), len(questions))
        name = settings.model_name or name_of(Path(model.rstrip("/")))
        with renamed(output) as partial:
            partial.write_text(answer_file(settings.format, questions, answers, name), encoding="utf-8")
    shutil.rmtree(work)
    return len(questions)


def _answerer(model: str, questions: list[Question], settings: GenerateSettings) -> Answerer:
    if settings.server is not None:
        return Server(settings.server, model, settings.max_new_tokens, settings.batch_size)
    from ..models.checkpoints import Trust
    from ..models.description import describe_model
    from ..models.loading import Loading
    from ..tokens.encoder import response_encoder
    from .local import LocalModel

    trust = Trust(settings.allow_pickle, settings.trust_remote_code)
    described = describe_model(model, settings.revision, trust)
    talks = any(question.context or len(question.turns) > 1 for question in questions)
    schema = pa.schema([("prompt", pa.list_(pa.string()) if talks else pa.string())])
    set_chat_template(described.tokenizer, settings.chat_template, schema, model)
    encoder = response_encoder(described.tokenizer, chat_template=settings.chat_template is not False)
    return LocalModel(
        described.checkpoint,
        encoder,
        Loading(settings.dtype, settings.device),
        max_new_tokens=settings.max_new_tokens,
        top_p=settings.top_p,
        max_context=described.max_context,
    )


def _identity(answerer: Answerer, settings: GenerateSettings) -> dict[str, object]:
    """What decides on the answers."""
    names = ("format", "temperature", "max_new_tokens", "seed", "batch_size", "limit")
    return {
        **answerer.identity(),
        **{name: getattr(settings, name) for name in names},
        "chat_template": str(settings.chat_template),
        "questions": file_sha256(settings.prompts),
    }


def _check_work(work: Path, identity: dict[str, object]) -> None:
    path = work / "settings.json"
    try:
        theirs = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        write_atomically(path, json_bytes(identity))
        return
    if differing := described_differences(theirs, identity):
        raise OutputError(
            f"{work} was begun with {differing}. Choose another `output`, or delete that folder."
        )


def _kept(path: Path) -> list[list[str]] | None:
    """The answers of a chunk that is finished."""
    if not path.exists():
        return None
    answers: list[list[str]] = json.loads(path.read_text(encoding="utf-8"))
    return answers


def _answer_chunk(
    path: Path, answerer: Answerer, chunk: list[Question], settings: GenerateSettings, first: int
) -> list[list[str]]:
    """All turns of a chunk's questions: the first of all, then the second of those that have one."""
    chats: list[Conversation] = [list(question.context) for question in chunk]
    answers: list[list[str]] = [[] for _ in chunk]
    for turn in range(max(len(question.turns) for question in chunk)):
        asked = [i for i, question in enumerate(chunk) if turn < len(question.turns)]
        for i in asked:
            chats[i].append(_message("user", chunk[i].turns[turn]))
        temperatures = [_temperature(chunk[i], settings) for i in asked]
        # questions count thousands at most: no two turns of a run share a seed
        seed = (settings.seed * 1_000_003 + first) * 2 + turn
        found = answerer.answers([chats[i] for i in asked], temperatures, seed % 2**63)
        for i, answer in zip(asked, found, strict=True):
            chats[i].append(_message("assistant", answer))
            answers[i].append(answer)
    write_atomically(path, json_bytes(answers))
    return answers


def _temperature(question: Question, settings: GenerateSettings) -> float:
    return settings.temperature if question.temperature is None else question.temperature


def _message(role: str, content: str) -> Message:
    return {"role": role, "content": content}
