"""Tests of what a run reports about its dataset: developer turns, prompts in text, repeated pairs."""

import logging
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from test_rendering_chats import GEMMA, LLAMA3, assistant, user
from tiny_pair import save_pair, write_jsonl
from tiny_tokenizers import CHATML, tiny_tokenizer

from sepo_data import AnnotateSettings, PreferenceError, annotate
from sepo_data.reasons import Unusable
from sepo_data.runs.repeats import CONTRADICTED, REPEATED, RepeatMeter
from sepo_data.tokens.encoder import response_encoder
from sepo_data.tokens.pairs import AS_SYSTEM, ASKS_IN_TEXT, ENDS_RENDERED
from sepo_data.tokens.rendering import asks_in_text
from sepo_train import SftSettings, train_sft

BRIEF = {"role": "developer", "content": "Be brief."}
TURN = "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
DROPPING = "{% for m in messages if m.role != 'developer' %}" + TURN + "{% endfor %}"
REFUSING = (
    "{% for m in messages %}{% if m.role == 'developer' %}{{ raise_exception('no developer') }}{% endif %}"
    + TURN
    + "{% endfor %}"
)


@pytest.mark.parametrize("template", [DROPPING, REFUSING])
def test_a_developer_s_text_is_the_system_s_where_the_template_knows_no_developer(template: str) -> None:
    encoder = response_encoder(tiny_tokenizer("byte_bpe", template))
    chat = encoder.render([BRIEF, user("Hi")], "Hello!")
    assert not isinstance(chat, Unusable)
    assert chat.text.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi")
    assert chat.as_system


@pytest.mark.parametrize("template", [CHATML, LLAMA3])
def test_a_template_that_writes_a_developer_s_turn_does_so(template: str) -> None:
    chat = response_encoder(tiny_tokenizer("byte_bpe", template)).render([BRIEF, user("Hi")], "Hello!")
    assert not isinstance(chat, Unusable)
    assert "developer" in chat.text
    assert not chat.as_system


def test_a_template_that_refuses_a_system_too_says_so() -> None:
    template = GEMMA.replace(
        "messages[0]['role'] == 'system'", "messages[0]['role'] in ['system', 'developer']"
    )
    chat = response_encoder(tiny_tokenizer("byte_bpe", template)).render([BRIEF, user("Hi")], "Hello!")
    assert isinstance(chat, Unusable)
    assert "no system" in chat.detail


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("### Instruction:\nName a tree.\n\n### Response:\n", True),
        ("USER: Name a tree. \nASSISTANT:", True),
        ("Q: Name a tree.\nAnswer:", True),
        ("\n\nHuman: Name a tree.\n\nAssistant:", False),  # becomes turns
        ("Name a tree. Answer: in one word", False),
        ("What does the heading ### Response mean?", False),
        ([user("### Response:")], False),
    ],
)
def test_prompts_in_text_that_ask_for_the_answer(prompt: Any, expected: bool) -> None:
    assert asks_in_text(prompt) == expected


def test_repeated_and_swapped_pairs_are_counted() -> None:
    def table(*rows: str) -> pa.Table:
        return pa.Table.from_pylist(
            [dict(zip(("prompt", "chosen", "rejected"), row, strict=True)) for row in rows]
        )

    meter = RepeatMeter()
    meter.add(table("pab", "pcd", "pab"))
    meter.add(table("pab", "pba", "qba", "pdc", "pdc"))
    # pab stands three times and pdc twice; pab/pba and pcd/pdc contradict each other
    assert meter.counts() == {REPEATED: 3, CONTRADICTED: 2}
    once = RepeatMeter()
    once.add(table("pab", "qab"))
    assert once.counts() == {}


def test_a_run_says_it_all(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    models = save_pair(tmp_path)
    row = {"prompt": "### Instruction:\nGo.\n\n### Response:\n", "chosen": "Paris", "rejected": "Rome"}
    turned = {**row, "chosen": "Rome", "rejected": "Paris"}
    blank = {**row, "chosen": " \n"}
    data = write_jsonl(tmp_path / "texts.jsonl", [row, row, turned, blank])
    with caplog.at_level(logging.WARNING, "sepo"):
        report = annotate(data, *models, AnnotateSettings(tmp_path / "texts"))
    assert "most prompts end as a template in text does" in caplog.text
    assert report.manifest is not None
    assert report.manifest.counts.dropped == {"empty response": 1}
    assert report.manifest.counts.notes == {ASKS_IN_TEXT: 3, REPEATED: 1, CONTRADICTED: 1}


def test_developer_turns_are_counted_once_a_pair(tmp_path: Path) -> None:
    models = save_pair(tmp_path, template=DROPPING)
    prompt = [BRIEF, user("Hi")]
    rows = [{"prompt": prompt, "chosen": [assistant("Paris")], "rejected": [assistant("Rome")]}]
    report = annotate(write_jsonl(tmp_path / "p.jsonl", rows), *models, AnnotateSettings(tmp_path / "out"))
    assert report.manifest is not None
    assert report.manifest.counts.notes == {AS_SYSTEM: 1}


def test_responses_that_were_rendered_before_are_reported(tmp_path: Path) -> None:
    models = save_pair(tmp_path)
    row = {"prompt": "Go.", "chosen": "Paris<|im_end|>\n", "rejected": "the <|im_end|> of Rome"}
    report = annotate(write_jsonl(tmp_path / "p.jsonl", [row]), *models, AnnotateSettings(tmp_path / "out"))
    assert report.manifest is not None
    assert report.manifest.counts.notes[ENDS_RENDERED] == 1


def test_training_says_what_the_template_says(tmp_path: Path) -> None:
    _, model = save_pair(tmp_path, template=GEMMA)
    chat = [{"role": "system", "content": "Be brief."}, user("Hi"), assistant("Paris")]
    data = write_jsonl(tmp_path / "chats.jsonl", [{"messages": chat}])
    with pytest.raises(PreferenceError, match=r"1 chat template refuses the conversation \(no system\)"):
        train_sft(model, data, SftSettings(output_dir=tmp_path / "out"))
