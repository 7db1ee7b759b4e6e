"""Tests of `sepo generate`: the benchmarks' files, batches, seeds, kills and servers."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from tiny_pair import save_pair
from transformers import AutoModelForCausalLM, AutoTokenizer

from cli.main import main
from sepo_data.generation import answering
from sepo_data.generation.benchmarks import FORMATS, answer_file, read_questions
from sepo_data.generation.local import LocalModel

ALPACA: list[dict[str, Any]] = [
    {"dataset": "helpful_base", "instruction": f"Say {word}.", "output": "theirs", "generator": "theirs"}
    for word in ("Paris", "a dog jumps", "x + 1", "quick", "Rome is the capital")
]
ARENA_V01: list[dict[str, Any]] = [
    {
        "question_id": f"q{i}",
        "category": "arena-hard-v0.1",
        "cluster": "c",
        "turns": [{"content": f"Say {i}"}],
    }
    for i in range(3)
]
ARENA_V2: list[dict[str, Any]] = [
    {"uid": f"u{i}", "category": "hard_prompt", "prompt": f"Say {i}"} for i in range(3)
]
MT: list[dict[str, Any]] = [
    {"question_id": 81, "category": "writing", "turns": ["Say Paris.", "Say it again."]},
    {"question_id": 111, "category": "math", "turns": ["x + 1", "And now?"], "reference": ["2", "3"]},
]
PLAIN: list[dict[str, Any]] = [
    {"prompt": "Say Rome.", "id": 7},
    {"prompt": [{"role": "system", "content": "Be quick"}, {"role": "user", "content": "a dog"}], "id": 8},
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_pair(tmp_path_factory.mktemp("models"))[1]


def question_file(path: Path, rows: list[dict[str, Any]], *, as_list: bool = False) -> Path:
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_text(json.dumps(rows) if as_list else lines)
    return path


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["generate", *map(str, arguments)])


def answered(model: str, prompts: Path, kind: str, output: Path, *options: object) -> str:
    common = ("--model", model, "--max-new-tokens", 8, "--device", "cpu")
    result = run(*common, "--prompts", prompts, "--format", kind, "--output", output, *options)
    assert result.exit_code == 0, result.output
    assert result.output.splitlines()[-1].startswith(f"saved to {output} in ")
    assert not output.with_name(f"{output.name}.work").exists()
    return output.read_text()


def test_alpaca_evals_file_has_what_alpaca_eval_merges_by(tmp_path: Path, model: str) -> None:
    prompts = question_file(tmp_path / "alpaca_eval.json", ALPACA, as_list=True)
    answers = json.loads(answered(model, prompts, "alpaca-eval", tmp_path / "answers.json"))
    assert [answer["instruction"] for answer in answers] == [row["instruction"] for row in ALPACA]
    assert {answer["generator"] for answer in answers} == {"ref"}
    assert all(set(answer) == {"dataset", "instruction", "output", "generator"} for answer in answers)
    assert any(answer["output"] for answer in answers)


def test_mt_benchs_second_turn_sees_the_first_answer_and_categories_have_their_temperature(
    tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    generate = LocalModel.answers

    def answers(self: LocalModel, chats: Any, temperatures: Any, seed: int) -> list[str]:
        found = generate(self, chats, temperatures, seed)
        asked.append(([[dict(turn) for turn in chat] for chat in chats], list(temperatures), found))
        return found

    monkeypatch.setattr(LocalModel, "answers", answers)
    prompts = question_file(tmp_path / "question.jsonl", MT)
    lines = answered(model, prompts, "mt-bench", tmp_path / "m.jsonl", "--model-name", "mine").splitlines()
    (_, temperatures, first), (second, _, last) = asked
    assert temperatures == [0.7, 0.0]
    for chat, answer, row in zip(second, first, MT, strict=True):
        turns = row["turns"]
        assert [turn["content"] for turn in chat] == [turns[0], answer, turns[1]]
    for line, row, one, other in zip(map(json.loads, lines), MT, first, last, strict=True):
        assert (line["question_id"], line["model_id"]) == (row["question_id"], "mine")
        assert line["choices"] == [{"index": 0, "turns": [one, other]}]


@pytest.mark.parametrize("version", ["v0.1", "v2"])
def test_arena_hards_answers_are_where_its_judge_looks(tmp_path: Path, model: str, version: str) -> None:
    rows = ARENA_V01 if version == "v0.1" else ARENA_V2
    text = answered(
        model, question_file(tmp_path / "question.jsonl", rows), "arena-hard", tmp_path / "out.jsonl"
    )
    for line, row in zip(map(json.loads, text.splitlines()), rows, strict=True):
        if version == "v0.1":  # answer["choices"][0]["turns"][i]["content"]
            assert line["question_id"] == row["question_id"]
            assert isinstance(line["choices"][0]["turns"][0]["content"], str)
        else:  # answer["messages"][-1]["content"]["answer"]
            assert line["uid"] == row["uid"]
            assert isinstance(line["messages"][-1]["content"]["answer"], str)
            assert line["messages"][0] == {"role": "user", "content": row["prompt"]}


def test_plain_lines_keep_their_fields_and_take_messages(tmp_path: Path, model: str) -> None:
    prompts = question_file(tmp_path / "prompts.jsonl", PLAIN)
    lines = list(map(json.loads, answered(model, prompts, "jsonl", tmp_path / "out.jsonl").splitlines()))
    assert [line["id"] for line in lines] == [7, 8]
    assert all({"prompt", "response", "generator"} <= line.keys() for line in lines)


def test_greedy_answers_in_a_batch_are_those_of_one_at_a_time_in_the_training_template(
    tmp_path: Path, model: str
) -> None:
    prompts = question_file(tmp_path / "q.json", ALPACA)
    together = json.loads(answered(model, prompts, "alpaca-eval", tmp_path / "a.json"))
    tokenizer: Any = AutoTokenizer.from_pretrained(model)
    plain: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    for row, answer in zip(ALPACA, together, strict=True):
        turns = [{"role": "user", "content": row["instruction"]}]
        ids = tokenizer.apply_chat_template(
            turns, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        end = tokenizer.convert_tokens_to_ids("<|im_end|>")
        out = plain.generate(
            **ids, max_new_tokens=8, do_sample=False, eos_token_id=end, pad_token_id=end, top_k=None
        )
        text = tokenizer.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
        assert answer["output"] == text.strip()


def test_a_seed_gives_the_same_file_and_another_seed_another(tmp_path: Path, model: str) -> None:
    prompts = question_file(tmp_path / "q.json", ALPACA)
    files = [
        answered(model, prompts, "alpaca-eval", tmp_path / f"{i}.json", "--temperature", 1, "--seed", seed)
        for i, seed in enumerate((3, 3, 4))
    ]
    assert files[0] == files[1] != files[2]


def test_a_killed_run_repeats_one_chunk_and_ends_in_the_same_bytes(
    tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = question_file(tmp_path / "q.json", ALPACA)
    options = ("--temperature", 1, "--batch-size", 2)
    whole = answered(model, prompts, "alpaca-eval", tmp_path / "whole.json", *options)
    generate, calls = LocalModel.answers, []

    def dies(self: LocalModel, chats: Any, temperatures: Any, seed: int) -> list[str]:
        calls.append(len(chats))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return generate(self, chats, temperatures, seed)

    monkeypatch.setattr(LocalModel, "answers", dies)
    common = ("--model", model, "--max-new-tokens", 8, "--device", "cpu", "--prompts", prompts)
    command = (*common, "--format", "alpaca-eval", "--output", tmp_path / "killed.json", *options)
    assert run(*command).exit_code == 130
    assert not (tmp_path / "killed.json").exists()
    refused = run(*command, "--seed", 9)
    assert "was begun with --seed 0, this run has 9" in refused.output
    assert run(*command).exit_code == 0
    assert calls == [2, 2, 2, 1]  # the second chunk again, and the third
    assert (tmp_path / "killed.json").read_text() == whole


@pytest.mark.parametrize(
    ("kind", "rows", "said"),
    [
        ("alpaca-eval", MT, "question 0 is not in the alpaca-eval format, and looks like mt-bench"),
        ("mt-bench", ALPACA, "looks like alpaca-eval: pass --format alpaca-eval"),
        ("mt-bench", ARENA_V01, "looks like arena-hard"),
        ("arena-hard", MT, "looks like mt-bench"),
        ("jsonl", [{"text": "hi"}], "question 0 is not in the jsonl format."),
        ("jsonl", [], "holds no question"),
    ],
)
def test_a_question_file_of_another_benchmark_is_refused(
    tmp_path: Path, model: str, kind: str, rows: list[dict[str, Any]], said: str
) -> None:
    prompts = question_file(tmp_path / "q.jsonl", rows)
    result = run("--model", model, "--prompts", prompts, "--format", kind, "--output", tmp_path / "a")
    assert result.exit_code == 1
    assert said in result.output.splitlines()[-1]


def test_invalid_json_and_an_existing_answer_file_are_refused(tmp_path: Path, model: str) -> None:
    (tmp_path / "q.jsonl").write_text("{half")
    command = ("--model", model, "--prompts", tmp_path / "q.jsonl", "--format", "jsonl", "--output")
    assert "cannot be read" in run(*command, tmp_path / "a").output
    (tmp_path / "a").write_text("theirs")
    question_file(tmp_path / "q.jsonl", PLAIN)
    assert "is there already. Choose another --output" in run(*command, tmp_path / "a").output
    assert (tmp_path / "a").read_text() == "theirs"


class Chat(BaseHTTPRequestHandler):
    """A server of OpenAI's chat protocol that repeats what it is asked, and fails from a request on."""

    asked: list[dict[str, Any]] = []  # noqa: RUF012
    dies_at: int | None = None

    def do_POST(self) -> None:
        """One completion."""
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append(request)
        failing = self.dies_at is not None and len(self.asked) >= self.dies_at
        message = {"role": "assistant", "content": f"echo {request['messages'][-1]['content']}"}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        body = json.dumps({"id": "1", "created": 0, "model": "m", "choices": [choice]})
        self.send_response(503 if failing else 200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(b"{}" if failing else body.encode())

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(answering, "BACKOFF_S", 0.0)
    monkeypatch.setattr(Chat, "asked", [])
    monkeypatch.setattr(Chat, "dies_at", None)
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Chat)
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{httpd.server_port}/v1"
    httpd.shutdown()


def test_a_server_answers_and_the_same_command_resumes_after_it_stopped(
    tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = question_file(tmp_path / "q.json", ALPACA)
    common = ("--model", "big", "--server", server, "--prompts", prompts, "--format", "alpaca-eval")
    command = (*common, "--output", tmp_path / "a.json", "--batch-size", 2, "--temperature", 0.5)
    monkeypatch.setattr(Chat, "dies_at", 3)
    stopped = run(*command)
    assert stopped.exit_code == 1
    assert "start the server again, and run the same command" in stopped.output.splitlines()[-1]
    monkeypatch.setattr(Chat, "dies_at", None)
    before = len(Chat.asked)
    assert run(*command).exit_code == 0
    assert len(Chat.asked) - before == 3
    answers = json.loads((tmp_path / "a.json").read_text())
    assert [answer["output"] for answer in answers] == [f"echo {row['instruction']}" for row in ALPACA]
    assert {(one["model"], one["temperature"], one["max_tokens"]) for one in Chat.asked} == {
        ("big", 0.5, 1024)
    }
    assert len({one["seed"] for one in Chat.asked}) == 5


def test_a_prompt_longer_than_the_model_reads_is_named(tmp_path: Path) -> None:
    demo = Path(__file__).parent.parent / "demo" / "policy"
    prompts = question_file(tmp_path / "q.jsonl", [{"prompt": "word " * 600}])
    result = run("--model", demo, "--prompts", prompts, "--format", "jsonl", "--output", tmp_path / "a")
    assert result.exit_code == 1
    assert "the model reads 512. Leave this question out." in result.output.splitlines()[-1]


def test_equal_answers_are_equal_files(tmp_path: Path) -> None:
    questions = read_questions(question_file(tmp_path / "q.jsonl", MT), "mt-bench")
    files = {answer_file("mt-bench", questions, [["a", "b"], ["c", "d"]], "m") for _ in range(2)}
    assert len(files) == 1
    assert FORMATS == ("alpaca-eval", "arena-hard", "mt-bench", "jsonl")
