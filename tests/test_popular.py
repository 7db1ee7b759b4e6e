"""Tests of docs/datasets.md: every dataset of its tables, in its columns, with the command that it names."""

import json
import math
import re
from pathlib import Path
from typing import Any

import datasets
import pytest
from tiny_pair import write_jsonl

from sepo_data.dataset_spec import DatasetSpec
from sepo_data.reasons import Unusable
from sepo_data.sources.conversations import open_chats
from sepo_data.sources.preferences import open_pairs

PAGE = Path(__file__).parent.parent / "docs" / "datasets.md"
ROW = re.compile(
    r"^\| (?P<name>[^|`]+) \| (?P<columns>(?:`[^`]+`(?:, )?)+) \| (?P<options>[^|]*) \|$", re.MULTILINE
)

ASKED = "Why is the sea salty?"
GOOD, BAD = "Rivers carry salts into it.", "Fish."
USER = {"role": "user", "content": ASKED}
A, B = ({"role": "assistant", "content": text} for text in (GOOD, BAD))
TRANSCRIPT = f"\n\nHuman: {ASKED}\n\nAssistant:"
TEXTS: dict[str, Any] = {"chosen": GOOD, "rejected": BAD}
WHOLE: dict[str, Any] = {"chosen": [USER, A], "rejected": [USER, B]}


def in_parts(*messages: dict[str, Any]) -> list[dict[str, Any]]:
    return [{**one, "content": [{"type": "text", "text": one["content"], "image": None}]} for one in messages]


def sharegpt(*messages: dict[str, Any]) -> list[dict[str, Any]]:
    names = {"user": "human", "assistant": "gpt"}
    return [{"from": names[one["role"]], "value": one["content"]} for one in messages]


RATED = [
    {
        "model": "m",
        "response": text,
        "overall_score": score,
        "fine-grained_score": score / 2,
        "critique": "c",
        "annotations": {"honesty": {"Rating": "4"}},
    }
    for text, score in ((BAD, 3.0), (GOOD, 9.0))
]

# a row, or the rows of one prompt, of each; what a column holds that nothing reads is left to "…"
PREFERENCES: dict[str, Any] = {
    "HuggingFaceH4/ultrafeedback_binarized": {
        **WHOLE,
        "prompt": ASKED,
        "prompt_id": "…",
        "messages": [USER, A],
        "score_chosen": 8.0,
        "score_rejected": 4.0,
    },
    "argilla/ultrafeedback-binarized-preferences-cleaned": {
        **WHOLE,
        "prompt": ASKED,
        "source": "…",
        "chosen-rating": 5.0,
        "chosen-model": "…",
        "rejected-rating": 3.0,
        "rejected-model": "…",
    },
    "argilla/ultrafeedback-binarized-preferences": {
        "source": "…",
        "instruction": ASKED,
        "chosen_response": GOOD,
        "rejected_response": BAD,
        "chosen_avg_rating": 5.0,
        "rejected_avg_rating": 3.0,
        "chosen_model": "…",
    },
    "openbmb/UltraFeedback": {
        "source": "…",
        "instruction": ASKED,
        "models": ["…"],
        "completions": RATED,
        "correct_answers": ["None"],
        "incorrect_answers": ["None"],
    },
    "princeton-nlp/llama3-ultrafeedback-armorm": {
        **WHOLE,
        "prompt_id": "…",
        "prompt": ASKED,
        "all_generated_responses": [BAD, GOOD],
        "all_rm_scores": [0.1, 0.2],
    },
    "Anthropic/hh-rlhf": {"chosen": f"{TRANSCRIPT} {GOOD}", "rejected": f"{TRANSCRIPT} {BAD}"},
    "Dahoas/full-hh-rlhf": {**TEXTS, "prompt": TRANSCRIPT, "response": "…"},
    "Intel/orca_dpo_pairs": {**TEXTS, "system": "Be brief.", "question": ASKED},
    "argilla/distilabel-intel-orca-dpo-pairs": {
        **TEXTS,
        "system": "",
        "input": ASKED,
        "generations": [GOOD, BAD],
        "order": ["…"],
        "labelling_model": "…",
        "rating": [9.0, 3.0],
        "rationale": "…",
        "status": "unchanged",
        "chosen_score": 9.0,
        "in_gsm8k_train": False,
    },
    "argilla/distilabel-capybara-dpo-7k-binarized": {
        **WHOLE,
        "source": "…",
        "conversation": [{"input": ASKED, "output": GOOD}],
        "original_response": "…",
        "new_generations": ["…"],
        "prompt": ASKED,
        "rating_chosen": 5,
        "rating_rejected": 3,
        "chosen_model": "…",
        "rejected_model": "…",
    },
    "argilla/OpenHermesPreferences": {
        **WHOLE,
        "source": "…",
        "category": "…",
        "prompt": ASKED,
        "candidates_completions": [GOOD, BAD],
        "candidate_policies": ["…"],
        "ranks": [1, 2],
        "rank_str": "…",
        "chosen_policy": "…",
        "rejected_policy": "…",
    },
    "argilla/dpo-mix-7k": {**WHOLE, "dataset": "…", "chosen_rating": 5.0, "rejected_rating": 4.0},
    "mlabonne/orpo-dpo-mix-40k": {**WHOLE, "source": "…", "prompt": ASKED, "question": ASKED},
    "allenai/llama-3.1-tulu-3-8b-preference-mixture": {**WHOLE, "id": "…", "source": "…", "prompt": ASKED},
    "Skywork/Skywork-Reward-Preference-80K-v0.2": {**WHOLE, "source": "…"},
    "Magpie-Align/Magpie-Llama-3.1-Pro-DPO-100K-v0.1": {
        **WHOLE,
        "conversation_id": "…",
        "instruction": ASKED,
        "gen_input_configs": {"temperature": 1},
    },
    "jondurbin/py-dpo-v0.1": {**TEXTS, "prompt": ASKED, "id": "…"},
    "Vezora/Code-Preference-Pairs": {"input": ASKED, "accepted": GOOD, "rejected": BAD, "ID": 1},
    "berkeley-nest/Nectar": {
        "prompt": f"{TRANSCRIPT} ",
        "answers": [{"answer": BAD, "model": "m", "rank": 2.0}, {"answer": GOOD, "model": "m", "rank": 1.0}],
        "turns": 1,
        "num_responses": 2,
        "source": ["…"],
        "good_natured": True,
    },
    "nvidia/HelpSteer2": [
        {
            "prompt": ASKED,
            "response": text,
            "helpfulness": score,
            "correctness": 1,
            "coherence": 4,
            "complexity": 1,
            "verbosity": 1,
        }
        for text, score in ((BAD, 0), (GOOD, 4))
    ],
    "nvidia/HelpSteer2, preference": {
        "split": "…",
        "prompt": ASKED,
        "response_1": BAD,
        "response_2": GOOD,
        "preference_strength": 3,
        "preference_statement": "…",
        "preference_elaboration": "…",
    },
    "nvidia/HelpSteer3": {
        "domain": "…",
        "language": "…",
        "context": [USER],
        "response1": GOOD,
        "response2": BAD,
        "overall_preference": -2,
        "individual_preference": [{"score": -2}],
    },
    "PKU-Alignment/PKU-SafeRLHF": {
        "prompt": ASKED,
        "response_0": BAD,
        "response_1": GOOD,
        "is_response_0_safe": True,
        "is_response_1_safe": False,
        "better_response_id": 1,
        "safer_response_id": 0,
    },
    "stanfordnlp/SHP": {
        "post_id": "…",
        "domain": "…",
        "history": ASKED,
        "c_root_id_A": "…",
        "c_root_id_B": "…",
        "score_A": 4,
        "score_B": 9,
        "human_ref_A": BAD,
        "human_ref_B": GOOD,
        "labels": 0,
        "score_ratio": 2.25,
    },
    "lmarena-ai/arena-human-preference-55k": {
        "id": 1,
        "model_a": "…",
        "model_b": "…",
        "prompt": json.dumps([ASKED]),
        "response_a": json.dumps([BAD]),
        "response_b": json.dumps([GOOD]),
        "winner_model_a": 0,
        "winner_model_b": 1,
        "winner_tie": 0,
    },
    "lmarena-ai/arena-human-preference-100k": {
        "question_id": "…",
        "model_a": "…",
        "model_b": "…",
        "winner": "model_b",
        "conversation_a": [USER, B],
        "conversation_b": [USER, A],
        "turn": 1,
        "language": "…",
        "is_code": False,
    },
    "lmarena-ai/arena-human-preference-140k": {
        "id": "…",
        "model_a": "…",
        "model_b": "…",
        "winner": "model_a",
        "conversation_a": in_parts(USER, A),
        "conversation_b": in_parts(USER, B),
        "language": "…",
        "is_code": False,
    },
    "openai/webgpt_comparisons": {
        "question": {"dataset": "…", "id": "…", "full_text": ASKED},
        "answer_0": GOOD,
        "answer_1": BAD,
        "tokens_0": {"prefix": [1]},
        "tokens_1": {"prefix": [1]},
        "score_0": 0.5,
        "score_1": -0.5,
    },
    "trl-lib/kto-mix-14k": [
        {"prompt": [USER], "completion": [answer], "label": answer is A} for answer in (B, A)
    ],
    "openbmb/UltraInteract_pair": {
        **TEXTS,
        "task": "…",
        "dataset": "…",
        "trajectory": [{"from": "user", "value": ASKED}],
        "id": "…",
    },
    "lvwerra/stack-exchange-paired": {
        "qid": 1,
        "question": ASKED,
        "date": "…",
        "metadata": ["…"],
        "response_j": GOOD,
        "response_k": BAD,
    },
    "LLaMA-Factory, ShareGPT": {
        "conversations": sharegpt(USER),
        "chosen": sharegpt(A)[0],
        "rejected": sharegpt(B)[0],
    },
    "LLaMA-Factory, Alpaca": {**TEXTS, "instruction": ASKED, "input": ""},
    "OpenAI's preference files": {
        "input": {"messages": [USER]},
        "preferred_output": [A],
        "non_preferred_output": [B],
    },
    "NeMo-RL, ranks": {
        "context": [USER],
        "completions": [{"rank": 0, "completion": [A]}, {"rank": 1, "completion": [B]}],
    },
    "ms-swift": {"messages": [USER, A], "rejected_response": BAD},
    "tatsu-lab/alpaca_farm, preferences": {
        "instruction": ASKED,
        "input": "",
        "output_1": BAD,
        "output_2": GOOD,
        "preference": 2,
        "raw_preference": 1.9,
    },
    "lmsys/mt_bench_human_judgments": {
        "question_id": 81,
        "model_a": "m",
        "model_b": "n",
        "winner": "model_b",
        "judge": "…",
        "conversation_a": [USER, B],
        "conversation_b": [USER, A],
        "turn": 1,
    },
    "lmarena-ai/PPE-Human-Preference-V1": {
        "question_id": "…",
        "model_1": "m",
        "model_2": "n",
        "prompt": ASKED,
        "response_1": BAD,
        "response_2": GOOD,
        "winner": "model_b",
        "language": "English",
    },
    "llm-blender/Unified-Feedback": {
        "id": 1,
        "conv_A": [USER, B],
        "conv_B": [USER, A],
        "conv_A_rating": 1.0,
        "conv_B_rating": 4.0,
        "num_turns": 1,
        "source": "…",
    },
    "xinlai/Math-Step-DPO-10K": {
        "dataset": "…",
        "prompt": ASKED,
        "initial_reason_steps": "…",
        **TEXTS,
        "full_chosen": GOOD,
        "full_rejected": BAD,
        "answer": "…",
    },
    "allenai/multipref": {
        "comparison_id": "…",
        "prompt_id": "…",
        "text": ASKED,
        "completion_a": BAD,
        "completion_b": GOOD,
        "model_a": "m",
        "model_b": "n",
        "source": "…",
        "overall_pref": "B-is-slightly-better",
        "helpful_pref": "Tie",
    },
    "OpenRLHF/preference_700K": {**WHOLE, "chosen_score": math.nan, "rejected_score": math.nan},
    "stanfordnlp/SHP-2": {
        "post_id": "…",
        "domain": "…",
        "history": ASKED,
        "human_ref_A": GOOD,
        "human_ref_B": BAD,
        "score_A": 9,
        "score_B": 2,
        "labels": 1,
        "seconds_difference": 1.0,
        "score_ratio": 4.5,
    },
    "lmarena-ai/search-arena-24k": {
        "model_a": "m",
        "model_b": "n",
        "winner": "model_b",
        "messages_a": WHOLE["rejected"],
        "messages_b": WHOLE["chosen"],
        "turn": 1,
    },
    "nvidia/HelpSteer3, edit quality": {
        "domain": "…",
        "context": [USER],
        "original_response": "…",
        "good_edited_response": GOOD,
        "bad_edited_response": BAD,
    },
    "PKU-Alignment/processed-hh-rlhf": {
        "context": [{"role": "human", "text": ASKED}],
        "chosen": {"role": "assistant", "text": GOOD},
        "rejected": {"role": "assistant", "text": BAD},
    },
    "allenai/reward-bench": {
        "prompt": ASKED,
        "chosen": GOOD,
        "chosen_model": "m",
        "rejected": BAD,
        "rejected_model": "n",
        "subset": "…",
        "id": 1,
    },
}
CHATS: dict[str, Any] = {
    "HuggingFaceH4/ultrachat_200k": {"prompt": ASKED, "prompt_id": "…", "messages": [USER, A]},
    "allenai/tulu-3-sft-mixture": {"id": "…", "messages": [USER, A], "source": "…"},
    "teknium/OpenHermes-2.5": {"conversations": sharegpt(USER, A), "source": "…", "category": None},
    "LDJnr/Capybara": {"source": "…", "conversation": [{"input": ASKED, "output": GOOD}]},
    "tatsu-lab/alpaca": {"instruction": ASKED, "input": "", "output": GOOD, "text": "…"},
    "openai/gsm8k": {"question": ASKED, "answer": GOOD},
    "databricks/databricks-dolly-15k": {
        "instruction": ASKED,
        "context": "",
        "response": GOOD,
        "category": "…",
    },
    "Open-Orca/OpenOrca": {"id": "…", "system_prompt": "…", "question": ASKED, "response": GOOD},
    "ise-uiuc/Magicoder-OSS-Instruct-75K": {"lang": "…", "problem": ASKED, "solution": GOOD},
    "CohereLabs/aya_dataset": {"inputs": ASKED, "targets": GOOD, "language": "…"},
}
LISTED = {found["name"].strip(): found for found in ROW.finditer(PAGE.read_text("utf-8"))}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def written(folder: Path, name: str, rows: Any) -> tuple[str, DatasetSpec]:
    """A fake of a listed dataset in the columns of the page, and what its command says about reading it."""
    rows = rows if isinstance(rows, list) else [rows]
    assert re.findall(r"`([^`]+)`", LISTED[name]["columns"]) == list(rows[0])
    said = LISTED[name]["options"].strip(" `").split()
    options = dict(zip(said[::2], said[1::2], strict=True))
    assert options.keys() <= {"--ignore-columns", "--split", "--config-name", "--prompt-column"}
    ignored = tuple(options.get("--ignore-columns", "").split(","))
    spec = DatasetSpec(ignore_columns=ignored, prompt_column=options.get("--prompt-column"))
    return write_jsonl(folder / "rows.jsonl", rows), spec


def text(content: Any) -> Any:
    return content if isinstance(content, str) else content[-1]["content"]


def test_the_page_lists_the_datasets_tried_here() -> None:
    assert list(LISTED) == [*PREFERENCES, *CHATS]


@pytest.mark.parametrize("name", PREFERENCES)
def test_a_preference_dataset_of_the_page_is_read(tmp_path: Path, name: str) -> None:
    path, spec = written(tmp_path, name, PREFERENCES[name])
    source, columns = open_pairs(path, spec)
    (pair,) = map(columns.read, source.rows)
    assert not isinstance(pair, Unusable)
    assert ASKED in text(pair.prompt)
    assert (text(pair.chosen).strip(), text(pair.rejected).strip()) == (GOOD, BAD)


@pytest.mark.parametrize("name", CHATS)
def test_a_dataset_of_conversations_of_the_page_is_read(tmp_path: Path, name: str) -> None:
    path, spec = written(tmp_path, name, CHATS[name])
    source, columns = open_chats(path, spec)
    (chat,) = map(columns.read, source.rows)
    assert not isinstance(chat, Unusable)
    assert (text(chat.prompt), text(chat.response)) == (ASKED, GOOD)
