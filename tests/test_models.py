"""Tests of opening a pair of models, from tiny folders, adapters and a Hub on 127.0.0.1."""

import json
import shutil
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from hub_server import HubServer
from huggingface_hub import snapshot_download
from peft import (
    AdaLoraConfig,
    IA3Config,
    LoKrConfig,
    LoraConfig,
    PeftConfig,
    PeftModel,
    PromptTuningConfig,
    VeraConfig,
    get_peft_model,
)
from safetensors.torch import load_file, save_file
from test_logprobs import plain_logps, some_tokens
from tiny_models import save_tiny, save_tiny_adapter, tiny_model, tiny_tokenizer
from torch.nn.functional import dropout
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BertConfig,
    BertLMHeadModel,
    PreTrainedModel,
)

from sepo_data.annotated.manifest import ModelFacts
from sepo_data.errors import HubError, ModelError, SettingsError, TokenizerError
from sepo_data.models import description, loading
from sepo_data.models.description import describe_pair
from sepo_data.models.loading import BATCH_TOKENS_CPU, Loading, ModelPair, Scorer, load_pair, scorers
from sepo_data.models.weights import load_base

SEQUENCES = some_tokens(30, 12, 21)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two models and three adapters, never changed by tests."""
    folder = tmp_path_factory.mktemp("models")
    base = save_tiny(folder / "base", seed=1)
    return {
        "base": base,
        "other": save_tiny(folder / "other", seed=2),
        "first": save_tiny_adapter(folder / "first", base, seed=1),
        "second": save_tiny_adapter(folder / "second", base, seed=2),
    }


@pytest.fixture
def copy(made: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of the base that a test may damage."""
    return shutil.copytree(made["base"], tmp_path / "copy")


def load(oracle: Path | str, ref: Path | str, **settings: Any) -> ModelPair:
    return load_pair(describe_pair(str(oracle), str(ref)), Loading(**settings))


def with_adapter(base: Path, adapter: Path | None) -> PreTrainedModel:
    """The model as loaded by peft alone."""
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter)
    alone: PreTrainedModel = model.eval()
    return alone


def assert_scores_like(pair: ModelPair, oracle: PreTrainedModel, ref: PreTrainedModel) -> None:
    """Score twice, since a role that stays active would show in the next one."""
    for _ in range(2):
        for scored, model in ((pair.oracle.logps(SEQUENCES), oracle), (pair.ref.logps(SEQUENCES), ref)):
            for logps, tokens in zip(scored, SEQUENCES, strict=True):
                np.testing.assert_allclose(logps, plain_logps(model, tokens), atol=1e-4, rtol=0)


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# --- what they are


def test_a_folder_is_known_by_its_own_name_and_a_hash_of_what_decides_on_its_numbers(
    made: dict[str, Path], copy: Path
) -> None:
    facts = describe_pair(str(made["base"]), str(made["other"]))
    assert facts.oracle.name == "base"
    assert facts.oracle.base is None
    assert facts.max_context == 64
    assert facts.tokenizer.get_vocab() == tiny_tokenizer().get_vocab()

    def revision() -> str:
        return describe_pair(str(copy), str(made["other"])).oracle.revision

    assert revision() == facts.oracle.revision  # another name, the same content
    (copy / "README.md").write_text("a note changes no number")
    assert revision() == facts.oracle.revision
    edit_json(copy / "config.json", rms_norm_eps=1e-3)
    assert revision() != facts.oracle.revision


def test_an_adapter_is_known_with_its_base(made: dict[str, Path]) -> None:
    facts = describe_pair(str(made["first"]), str(made["base"]))
    assert facts.oracle.name == "first"
    assert facts.oracle.revision.startswith("sha256:")
    assert facts.oracle.base == f"base@{facts.ref.revision}"
    assert facts.oracle.revision != facts.ref.revision


def test_the_shorter_context_limits_the_pair(made: dict[str, Path], tmp_path: Path) -> None:
    short = save_tiny(tmp_path / "short", max_position_embeddings=32)
    assert describe_pair(str(made["base"]), str(short)).max_context == 32


@pytest.mark.parametrize(
    ("family", "context"), [("gpt2", 64), ("bloom", None), ("falcon", None), ("gemma3_text", 64)]
)
def test_the_context_is_found_under_every_name_and_alibi_has_none(
    family: str, context: int | None, tmp_path: Path
) -> None:
    oracle, ref = (save_tiny(tmp_path / str(seed), family, seed=seed) for seed in (1, 2))
    assert describe_pair(str(oracle), str(ref)).max_context == context


def test_a_model_without_tokenizer_takes_that_of_the_other(made: dict[str, Path], copy: Path) -> None:
    for path in copy.glob("tokenizer*"):
        path.unlink()
    for oracle, ref in ((copy, made["other"]), (made["other"], copy)):
        facts = describe_pair(str(oracle), str(ref))
        assert facts.tokenizer.get_vocab() == tiny_tokenizer().get_vocab()


def test_the_tokenizer_of_an_adapter_comes_before_that_of_its_base(
    made: dict[str, Path], tmp_path: Path
) -> None:
    adapter = shutil.copytree(made["first"], tmp_path / "adapter")
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "from the adapter"
    tokenizer.save_pretrained(adapter)
    facts = describe_pair(str(adapter), str(made["base"]))
    assert facts.tokenizer.chat_template == "from the adapter"


# --- how they score


def test_two_folders_score_like_the_models_that_they_hold(made: dict[str, Path]) -> None:
    pair = load(made["base"], made["other"])
    assert pair.oracle.batch_tokens == BATCH_TOKENS_CPU
    assert_scores_like(pair, tiny_model(seed=1), tiny_model(seed=2))


def test_progress_and_budget_reach_the_scoring(made: dict[str, Path]) -> None:
    told: list[int] = []
    load(made["base"], made["other"]).ref.logps(SEQUENCES, 1, told.append)
    assert told == [30, 21, 12]


@pytest.mark.parametrize(("oracle", "ref"), [("first", None), (None, "first"), ("first", "second")])
def test_adapters_share_one_base_and_score_as_if_loaded_alone(
    oracle: str | None, ref: str | None, made: dict[str, Path]
) -> None:
    pair = load(made[oracle or "base"], made[ref or "base"])
    assert pair.oracle.model is pair.ref.model
    base_weights = [
        w for name, w in pair.oracle.model.named_parameters() if name.endswith("embed_tokens.weight")
    ]
    assert len(base_weights) == 1
    assert_scores_like(
        pair,
        with_adapter(made["base"], made[oracle] if oracle else None),
        with_adapter(made["base"], made[ref] if ref else None),
    )


def test_an_adapter_on_another_base_than_the_reference_is_loaded_next_to_it(made: dict[str, Path]) -> None:
    pair = load(made["first"], made["other"])
    assert pair.oracle.model is not pair.ref.model
    assert_scores_like(pair, with_adapter(made["base"], made["first"]), tiny_model(seed=2))


def test_an_adapter_that_changes_its_base_does_not_change_the_reference(tmp_path: Path) -> None:
    # LoRA with bias="all" writes new biases into the base, where switching the adapter off leaves them
    base = save_tiny(tmp_path / "base", "qwen2")
    adapter = save_tiny_adapter(tmp_path / "adapter", base, bias="all")
    pair = load(adapter, base)
    assert_scores_like(pair, with_adapter(base, adapter), tiny_model("qwen2"))


LORA: dict[str, Any] = {"r": 2, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}
KINDS: dict[str, Callable[[], PeftConfig]] = {
    "DoRA": lambda: LoraConfig(**LORA, use_dora=True),
    "LoRA of tied embeddings": lambda: LoraConfig(
        **LORA | {"target_modules": ["embed_tokens"]}, ensure_weight_tying=True
    ),
    "new tokens, trained": lambda: LoraConfig(**LORA, trainable_token_indices=[3, 5]),
    "norms, saved whole": lambda: LoraConfig(**LORA, modules_to_save=["input_layernorm"]),
    "PiSSA": lambda: LoraConfig(**LORA, init_lora_weights="pissa"),
    "layers twice": lambda: LoraConfig(**LORA, layer_replication=[(0, 2), (1, 2)]),
    "AdaLoRA": lambda: AdaLoraConfig(
        init_r=2, target_r=1, total_step=9, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"
    ),
    "VeRA": lambda: VeraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"),
    "VeRA, drawn again": lambda: VeraConfig(
        r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", save_projection=False
    ),
    "LoKr": lambda: LoKrConfig(**LORA),
    "IA3": lambda: IA3Config(
        target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"], task_type="CAUSAL_LM"
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_adapter_scores_as_peft_loads_it(
    kind: str, made: dict[str, Path], tmp_path: Path
) -> None:
    base = save_tiny(tmp_path / "base", tie_word_embeddings=True)
    adapted: Any = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), KINDS[kind]()
    )
    torch.manual_seed(4)
    for weights in adapted.parameters():
        if weights.requires_grad:
            weights.data += 0.1 * torch.randn_like(weights)
    adapted.save_pretrained(str(tmp_path / "adapter"))
    pair = load(tmp_path / "adapter", base)
    assert_scores_like(pair, adapted.eval(), with_adapter(base, None))


def test_an_adapter_finds_its_base_next_to_itself(made: dict[str, Path], tmp_path: Path) -> None:
    for name in ("base", "first"):
        shutil.copytree(made[name], tmp_path / name)
    edit_json(tmp_path / "first" / "adapter_config.json", base_model_name_or_path="../base")
    pair = load(tmp_path / "first", tmp_path / "base")
    assert pair.oracle.model is pair.ref.model


def test_the_dtype_is_the_one_asked_for_not_the_stored_one(tmp_path: Path) -> None:
    for seed in (1, 2):
        torch.nn.Module.to(tiny_model(seed=seed), torch.float16).save_pretrained(tmp_path / str(seed))
        tiny_tokenizer().save_pretrained(tmp_path / str(seed))
    pair = load(tmp_path / "1", tmp_path / "2")
    assert pair.oracle.model.dtype == torch.float32
    half = load(tmp_path / "1", tmp_path / "2", dtype="bfloat16")
    assert half.ref.model.dtype == torch.bfloat16
    (exact,), (rough,) = (p.oracle.logps(SEQUENCES[:1]) for p in (pair, half))
    assert rough.dtype == np.float32
    np.testing.assert_allclose(rough, exact, atol=0.5)
    assert not np.array_equal(rough, exact)


def test_adapters_compute_in_the_dtype_asked_for(made: dict[str, Path]) -> None:
    pair = load(made["first"], made["base"], dtype="bfloat16")
    assert {weights.dtype for weights in pair.oracle.model.parameters()} == {torch.bfloat16}


def test_soft_capped_attention_is_computed_with_its_caps(tmp_path: Path) -> None:
    # the same weights with and without caps: a loader that drops the caps would find the two the same
    capped = save_tiny(tmp_path / "capped", "gemma2")
    plain = shutil.copytree(capped, tmp_path / "plain")
    edit_json(plain / "config.json", attn_logit_softcapping=None)
    with_caps, without = tiny_model("gemma2"), tiny_model("gemma2", attn_logit_softcapping=None)
    first, second = (plain_logps(model, SEQUENCES[0]) for model in (with_caps, without))
    assert np.abs(first - second).max() > 0.01
    assert_scores_like(load(capped, plain), with_caps, without)


# --- from the Hub


def test_models_and_adapters_come_from_the_hub_at_one_commit(
    made: dict[str, Path], hub: HubServer, tmp_path: Path
) -> None:
    base_sha = hub.add("model", "me/base", made["base"])
    adapter = shutil.copytree(made["first"], tmp_path / "adapter")
    edit_json(adapter / "adapter_config.json", base_model_name_or_path="me/base")
    adapter_sha = hub.add("model", "me/adapter", adapter)
    facts = describe_pair("me/adapter", "me/base")
    assert facts.oracle == ModelFacts("me/adapter", adapter_sha, f"me/base@{base_sha}")
    assert facts.ref == ModelFacts("me/base", base_sha, None)
    assert not [
        request for request in hub.requests if "safetensors" in request
    ]  # no weights before load_pair

    hub.add("model", "me/base", made["other"])  # later commits change nothing
    hub.add("model", "me/adapter", made["second"])
    pair = load_pair(facts, Loading())
    assert pair.oracle.model is pair.ref.model
    assert_scores_like(pair, with_adapter(made["base"], made["first"]), tiny_model(seed=1))


def test_a_revision_chooses_the_commit(made: dict[str, Path], hub: HubServer) -> None:
    first = hub.add("model", "me/grows", made["base"])
    second = hub.add("model", "me/grows", made["other"])
    facts = describe_pair("me/grows", "me/grows", ref_revision=first)
    assert (facts.oracle.revision, facts.ref.revision) == (second, first)
    assert_scores_like(load_pair(facts, Loading()), tiny_model(seed=2), tiny_model(seed=1))


def test_what_is_in_the_cache_needs_no_hub(
    made: dict[str, Path], hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("model", "me/kept", made["base"])
    snapshot_download("me/kept")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    hub.clear()
    assert_scores_like(load("me/kept", made["other"]), tiny_model(seed=1), tiny_model(seed=2))
    assert hub.requests == []


def test_a_hub_that_fails_once_is_asked_again(
    made: dict[str, Path], hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sepo_data.hub.client.BACKOFF_S", 0.01)
    hub.add("model", "me/shy", made["base"])
    hub.fail("GET /api/models/me/shy/revision/", [500])
    with pytest.raises(ModelError, match="same model"):
        describe_pair("me/shy", "me/shy")
    hub.fail("GET /api/models/me/shy/revision/", [403])
    with pytest.raises(HubError, match="me/shy"):
        describe_pair("me/shy", str(made["base"]))


# --- what cannot be used


def test_a_name_that_is_neither_folder_nor_model_is_an_error(made: dict[str, Path], hub: HubServer) -> None:
    with pytest.raises(ModelError, match="me/nothing: not on the Hub"):
        describe_pair("me/nothing", str(made["base"]))
    with pytest.raises(ModelError, match=r"\./no/such/folder: neither a folder nor a name on the Hub"):
        describe_pair("./no/such/folder", str(made["base"]))


def test_a_revision_of_a_folder_is_an_error(made: dict[str, Path]) -> None:
    with pytest.raises(ModelError, match='a folder has no revision "main"'):
        describe_pair(str(made["base"]), str(made["other"]), oracle_revision="main")


def test_a_folder_without_weights_is_an_error(made: dict[str, Path], copy: Path) -> None:
    (copy / "model.safetensors").unlink()
    with pytest.raises(
        ModelError, match=r"no model\.safetensors in it\. Check that the weights are complete"
    ):
        describe_pair(str(copy), str(made["other"]))
    (copy / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(
        ModelError, match=r"pytorch_model\.bin is a pickle.* Convert it to model\.safetensors"
    ):
        describe_pair(str(copy), str(made["other"]))


def test_an_adapter_without_weights_is_an_error(made: dict[str, Path], tmp_path: Path) -> None:
    adapter = shutil.copytree(made["first"], tmp_path / "adapter")
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    with pytest.raises(ModelError, match=r"adapter_model\.bin is a pickle"):
        describe_pair(str(adapter), str(made["base"]))


def test_a_folder_without_configuration_is_an_error(made: dict[str, Path], copy: Path) -> None:
    (copy / "config.json").unlink()
    with pytest.raises(ModelError, match=r"copy: no config\.json in it"):
        describe_pair(str(copy), str(made["other"]))


def test_a_damaged_configuration_is_an_error(made: dict[str, Path], copy: Path) -> None:
    (copy / "config.json").write_text("{")
    with pytest.raises(ModelError, match="not a valid JSON file"):
        describe_pair(str(copy), str(made["other"]))


def test_truncated_weights_are_an_error(made: dict[str, Path], copy: Path) -> None:
    whole = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match=f"{copy}: "):
        load(copy, made["other"])


def test_weights_that_are_missing_are_not_made_up(made: dict[str, Path], copy: Path) -> None:
    weights = load_file(copy / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"its weights lack lm_head\.weight"):
        load(copy, made["other"])


def test_code_from_the_hub_is_not_run(made: dict[str, Path], copy: Path) -> None:
    edit_json(copy / "config.json", model_type="mine", auto_map={"AutoConfig": "mine.Mine"})
    with pytest.raises(
        ModelError, match=r"copy: needs code of its own\. Read it, and if you trust it pass `trust"
    ):
        describe_pair(str(copy), str(made["other"]))


@pytest.mark.parametrize("model_type", ["bart", "vit"])
def test_a_model_that_is_not_causal_by_its_type_is_an_error(
    model_type: str, made: dict[str, Path], copy: Path
) -> None:
    AutoConfig.for_model(model_type).save_pretrained(copy)
    with pytest.raises(
        ModelError, match=f"a {model_type} model does not predict each token from those before"
    ):
        describe_pair(str(copy), str(made["other"]))


def test_a_model_that_reads_ahead_is_an_error(made: dict[str, Path], tmp_path: Path) -> None:
    bert = BertLMHeadModel(
        BertConfig(vocab_size=300, hidden_size=32, num_attention_heads=4, initializer_range=0.3)
    )
    bert.save_pretrained(str(tmp_path))
    with pytest.raises(ModelError, match="a bert model does not predict each token from those before"):
        load(tmp_path, made["other"])


@pytest.mark.parametrize("sequential", [False, True])
def test_a_model_whose_numbers_are_random_does_not_count_as_one_that_reads_ahead(
    sequential: bool, made: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def with_dropout(*args: Any, **kwargs: Any) -> Any:
        model: Any = load_base(*args, **kwargs)
        model.model.norm.register_forward_hook(lambda module, args, out: dropout(out, 0.5, training=True))
        return model

    monkeypatch.setattr(loading, "load_base", with_dropout)
    facts = describe_pair(str(made["base"]), str(made["other"]))
    with pytest.raises(ModelError, match=r"base: two forward passes of the same text differ by \d.* nats"):
        next(scorers(facts, Loading(device="cpu"), in_turn=sequential))


def test_different_vocabularies_are_an_error_that_names_a_token(made: dict[str, Path], copy: Path) -> None:
    tiny_tokenizer(extra=("zebra",)).save_pretrained(copy)
    with pytest.raises(ModelError, match="different vocabularies: the id of 'zebra' is 288 for one and None"):
        describe_pair(str(copy), str(made["other"]))


def test_a_model_with_fewer_tokens_than_the_tokenizer_is_an_error(
    made: dict[str, Path], tmp_path: Path
) -> None:
    small = tmp_path / "small"
    tiny_model(vocab_size=200).save_pretrained(small)
    with pytest.raises(ModelError, match=r"small: knows 200 tokens, but .* has id 287 in the tokenizer"):
        describe_pair(str(made["base"]), str(small))


def test_a_control_token_needs_no_embedding(tmp_path: Path) -> None:
    # Gemma 3 1B: 262,144 embeddings, and <image_soft_token> is number 262,144
    for seed in (1, 2):
        tiny_model(seed=seed, vocab_size=288).save_pretrained(tmp_path / str(seed))
        tokenizer = tiny_tokenizer()
        tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
        tokenizer.save_pretrained(tmp_path / str(seed))
    assert describe_pair(str(tmp_path / "1"), str(tmp_path / "2")).tokenizer.vocab_size == 288


def test_a_pair_without_tokenizer_is_an_error(tmp_path: Path) -> None:
    for seed in (1, 2):
        tiny_model(seed=seed).save_pretrained(tmp_path / str(seed))
    with pytest.raises(TokenizerError, match="neither 1 nor 2 has a tokenizer"):
        describe_pair(str(tmp_path / "1"), str(tmp_path / "2"))


def test_a_damaged_tokenizer_is_an_error(made: dict[str, Path], copy: Path) -> None:
    (copy / "tokenizer.json").write_text("{}")
    with pytest.raises(TokenizerError, match=f"{copy}: "):
        describe_pair(str(copy), str(made["other"]))


def test_an_oracle_that_is_the_reference_is_an_error_before_weights_are_loaded(
    made: dict[str, Path], copy: Path
) -> None:
    with pytest.raises(ModelError, match="all rewards would be 0"):
        describe_pair(str(made["base"]), str(copy))


def test_the_same_weights_under_other_names_are_an_error(made: dict[str, Path], copy: Path) -> None:
    edit_json(copy / "config.json", _made_by="me")
    with pytest.raises(ModelError, match=r"oracle \(copy\) and reference \(base\) are the same model"):
        load(copy, made["base"])


def test_an_adapter_that_was_never_trained_is_an_error(made: dict[str, Path], tmp_path: Path) -> None:
    adapter = shutil.copytree(made["first"], tmp_path / "adapter")
    weights = load_file(adapter / "adapter_model.safetensors")
    save_file(
        {name: w * ("lora_B" not in name) for name, w in weights.items()},
        adapter / "adapter_model.safetensors",
    )
    with pytest.raises(ModelError, match=r"oracle \(adapter\) and reference \(base\) are the same model"):
        load(adapter, made["base"])


def test_an_adapter_without_peft_says_what_to_install(
    made: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ModelError, match=r"pip install peft"):
        describe_pair(str(made["first"]), str(made["base"]))


def test_an_adapter_whose_base_is_gone_says_where_it_is_named(made: dict[str, Path], tmp_path: Path) -> None:
    adapter = shutil.copytree(made["first"], tmp_path / "adapter")
    edit_json(adapter / "adapter_config.json", base_model_name_or_path="/gone/base")
    with pytest.raises(ModelError, match=r"base_model_name_or_path in adapter_config\.json: /gone/base: "):
        describe_pair(str(adapter), str(made["base"]))
    edit_json(adapter / "adapter_config.json", base_model_name_or_path=None)
    with pytest.raises(ModelError, match="its base is unknown"):
        describe_pair(str(adapter), str(made["base"]))


def test_an_adapter_that_adds_tokens_is_an_error(made: dict[str, Path], tmp_path: Path) -> None:
    base = AutoModelForCausalLM.from_pretrained(made["base"])
    get_peft_model(base, PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM")).save_pretrained(
        str(tmp_path)
    )
    with pytest.raises(ModelError, match="of type PROMPT_TUNING adds tokens to the prompt"):
        describe_pair(str(tmp_path), str(made["base"]))


def test_a_scorer_computes_in_its_own_precision_and_leaves_the_process_s() -> None:
    seen: list[str] = []
    model, before = tiny_model(), torch.get_float32_matmul_precision()
    model.register_forward_hook(lambda *_: seen.append(torch.get_float32_matmul_precision()))
    scorer = Scorer(model, nullcontext, 100, "high")
    scorer.logps(SEQUENCES)
    scorer.probe()
    assert set(seen) == {"high"}
    ModelPair(scorer, scorer).exact().ref.logps(SEQUENCES)
    assert seen[-1] == "highest"
    assert torch.get_float32_matmul_precision() == before


@pytest.mark.parametrize(
    ("how", "device", "precision"),
    [
        (Loading(), "cuda", "high"),
        (Loading(exact=True), "cuda", "highest"),
        (Loading("bfloat16"), "cuda", "highest"),
        (Loading(), "cpu", None),
    ],
)
def test_only_float32_on_cuda_is_computed_in_tf32(
    how: Loading, device: str, precision: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "scoring_device", lambda name: torch.device(device))
    assert how.precision == precision


def test_a_device_that_does_not_exist_is_an_error(made: dict[str, Path]) -> None:
    with pytest.raises(SettingsError, match='device "cuda:99": '):
        load(made["base"], made["other"], device="cuda:99")
    with pytest.raises(SettingsError, match='device "potato": '):
        load(made["base"], made["other"], device="potato")


# Weights that do not land, tokens that only one model has ------------------------------------------------


def changed_weights(adapter: Path, folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> Path:
    """A copy of an adapter with other weights."""
    copy = Path(shutil.copytree(adapter, folder))
    weights = load_file(copy / "adapter_model.safetensors")
    change(weights)
    save_file(weights, copy / "adapter_model.safetensors")
    return copy


def lacking(weights: dict[str, torch.Tensor]) -> None:
    del weights[min(weights)]


def deeper(weights: dict[str, torch.Tensor]) -> None:
    weights |= {key.replace("layers.0", "layers.7"): value.clone() for key, value in weights.items()}


def wrapped(weights: dict[str, torch.Tensor]) -> None:
    for key in list(weights):
        weights[key.replace("model.layers", "model.language_model.layers")] = weights.pop(key)


def without_head(weights: dict[str, torch.Tensor]) -> None:
    del weights["base_model.model.lm_head.weight"]


def wider(weights: dict[str, torch.Tensor]) -> None:
    key = next(key for key in weights if "q_proj.lora_B" in key)
    weights[key] = torch.cat([weights[key]] * 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lacking, r"1 place without weights, like .*lora_A\.weight"),
        (deeper, r"of its \d+ weights have no place, like .*layers\.7"),
        (wrapped, r"(\d+) of its \1 weights have no place, like .*language_model"),
        (wider, r"q_proj.lora_B\S* has the size \[64, 2\], its place \[32, 2\]"),
    ],
)
@pytest.mark.parametrize("ref", ["base", "other"])
def test_an_adapter_that_does_not_fit_its_base_is_an_error(
    made: dict[str, Path], tmp_path: Path, change: Any, message: str, ref: str
) -> None:
    adapter = changed_weights(made["first"], tmp_path / "adapter", change)
    with pytest.raises(ModelError, match=f"adapter: the adapter does not fit its base: .*{message}") as error:
        load(adapter, made[ref])
    assert len(str(error.value).splitlines()) == 1


def test_a_missing_weight_is_an_error_where_weights_have_no_address(
    made: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = changed_weights(made["first"], tmp_path / "adapter", lacking)
    monkeypatch.setattr(torch.Tensor, "data_ptr", lambda _: 0)  # as on accelerate's meta device
    with pytest.raises(ModelError, match="1 place without weights"):
        load(adapter, made["base"])


def test_weights_without_a_place_in_the_config_are_an_error(made: dict[str, Path], tmp_path: Path) -> None:
    deep = tiny_model(num_hidden_layers=4)
    deep.save_pretrained(tmp_path / "deep")
    tiny_tokenizer().save_pretrained(tmp_path / "deep")
    edit_json(tmp_path / "deep" / "config.json", num_hidden_layers=2)
    with pytest.raises(ModelError, match=r"it holds model\.layers\.2\..*config\.json has no place"):
        load(tmp_path / "deep", made["base"])


def test_empty_and_compiled_weights_are_named(made: dict[str, Path], tmp_path: Path) -> None:
    for name, change in (
        ("empty", lambda key, value: (key, value[:0])),
        ("compiled", lambda key, value: (f"_orig_mod.{key}", value)),
    ):
        copy = Path(shutil.copytree(made["other"], tmp_path / name))
        weights = dict(change(*item) for item in load_file(copy / "model.safetensors").items())
        save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="is empty: the model was saved under ZeRO-3"):
        load(tmp_path / "empty", made["base"])
    with pytest.raises(ModelError, match=r"begin with _orig_mod\..*Save model\._orig_mod"):
        load(tmp_path / "compiled", made["base"])


@pytest.mark.parametrize(
    ("named", "advice"),
    [
        ("meta-llama/Llama-3.2-1B", r"pass meta-llama/Llama-3\.2-1B, the model in full precision\."),
        ("unsloth/Llama-3.2-1B-bnb-4bit", r"pass the model in full precision\."),
        (None, r"pass the model in full precision\."),
    ],
)
def test_quantised_weights_that_cannot_be_loaded_name_the_full_ones(
    made: dict[str, Path], tmp_path: Path, named: str | None, advice: str
) -> None:
    copy = Path(shutil.copytree(made["other"], tmp_path / "quantised"))
    settings = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False}
    edit_json(copy / "config.json", quantization_config=settings, _name_or_path=named)
    with pytest.raises(ModelError, match=rf"so would the rewards be: {advice}$") as refusal:
        load(copy, made["base"])
    assert "\n" not in str(refusal.value)


def test_a_token_that_only_one_model_has_and_no_text_is_let_pass(
    made: dict[str, Path], tmp_path: Path
) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    model = tiny_model(seed=3)
    size = model.config.vocab_size
    model.resize_token_embeddings(size + 8, mean_resizing=False)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    for oracle, ref in ((tmp_path, made["base"]), (made["base"], tmp_path)):
        facts = describe_pair(str(oracle), str(ref))
        assert "[PAD]" not in facts.tokenizer.get_vocab()
        assert_scores_like(
            load(oracle, ref), *(AutoModelForCausalLM.from_pretrained(p) for p in (oracle, ref))
        )
    tokenizer.chat_template = "[PAD]{{ messages }}"
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"different vocabularies: the id of '\[PAD\]'"):
        describe_pair(str(tmp_path), str(made["base"]))


def test_an_adapter_may_add_tokens_without_changing_the_reference(
    made: dict[str, Path], tmp_path: Path
) -> None:
    model = AutoModelForCausalLM.from_pretrained(made["base"], dtype=torch.float32)
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|moon|>"]})
    model.resize_token_embeddings(model.config.vocab_size + 5, mean_resizing=False)
    lora = LoraConfig(
        r=2, target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"], init_lora_weights=False
    )
    adapted = get_peft_model(model, lora)
    adapted.save_pretrained(str(tmp_path))
    tokenizer.save_pretrained(tmp_path)
    torch.nn.Module.eval(adapted)
    ref = AutoModelForCausalLM.from_pretrained(made["base"], dtype=torch.float32)
    assert_scores_like(load(tmp_path, made["base"]), cast("PreTrainedModel", adapted), ref)


def test_a_model_or_template_that_is_not_what_it_seems_is_reported(
    made: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    describe_pair(str(made["first"]), str(made["other"]))
    assert "adapter on base, the reference is other" in caplog.text
    copy = Path(shutil.copytree(made["other"], tmp_path / "copy"))
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{{ messages }}"
    tokenizer.save_pretrained(copy)
    caplog.clear()
    describe_pair(str(made["base"]), str(copy))
    assert (
        "base has no chat template and copy has one" in caplog.text
        or "different chat templates" in caplog.text
    )
    both = Path(shutil.copytree(made["first"], tmp_path / "both"))
    for name in ("config.json", "model.safetensors"):
        shutil.copy(made["other"] / name, both / name)
    caplog.clear()
    describe_pair(str(both), str(made["base"]))
    assert "holds an adapter and whole weights: the adapter is used" in caplog.text


def test_an_adapter_without_the_biases_or_modules_that_it_trained_is_an_error(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base", "qwen2")
    adapter = save_tiny_adapter(tmp_path / "adapter", base, modules_to_save=["lm_head"])
    edit_json(adapter / "adapter_config.json", bias="all")
    with pytest.raises(ModelError, match=r"6 places without weights, like .*k_proj\.bias"):
        load(adapter, base)
    edit_json(adapter / "adapter_config.json", bias="none")
    load(changed_weights(adapter, tmp_path / "whole", lambda weights: None), base)
    headless = changed_weights(adapter, tmp_path / "headless", without_head)
    with pytest.raises(ModelError, match=r"lm_head\.weight' is missing from its files.* Save it again"):
        load(headless, base)


def test_what_the_libraries_do_not_know_is_said_in_a_sentence(made: dict[str, Path], tmp_path: Path) -> None:
    adapter = Path(shutil.copytree(made["first"], tmp_path / "adapter"))
    edit_json(adapter / "adapter_config.json", peft_type="LATER")
    with pytest.raises(ModelError, match=r"adapter: 'LATER' is missing .* or the installed .* upgrade them"):
        load(adapter, made["base"])
    rope = Path(shutil.copytree(made["other"], tmp_path / "rope"))
    edit_json(rope / "config.json", rope_parameters={"rope_type": "later"})
    with pytest.raises(ModelError, match="rope: 'later' is missing"):
        load(rope, made["base"])


def test_an_adapter_below_a_folder_is_named(made: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(made["first"], tmp_path / "out" / "dpo")
    with pytest.raises(ModelError, match=r"an adapter below it\. Give .*out/dpo\."):
        describe_pair(str(tmp_path / "out"), str(made["base"]))


@pytest.mark.parametrize("shards", [False, True])
def test_integers_are_no_weights_and_eight_bits_are_said(
    made: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture, shards: bool
) -> None:
    for dtype in (torch.int8, torch.float8_e4m3fn):
        folder = Path(shutil.copytree(made["other"], tmp_path / str(dtype)))
        weights = load_file(folder / "model.safetensors")
        weights["lm_head.weight"] = weights["lm_head.weight"].to(dtype)
        if shards:
            (folder / "model.safetensors").unlink()
            index = {"metadata": {}, "weight_map": dict.fromkeys(weights, "model-00001-of-00001.safetensors")}
            (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        file = "model-00001-of-00001.safetensors" if shards else "model.safetensors"
        save_file(weights, folder / file, {"format": "pt"})
    with pytest.raises(ModelError, match=r"lm_head\.weight is stored as I8, .*in full precision"):
        load(tmp_path / "torch.int8", made["base"])
    load(tmp_path / "torch.float8_e4m3fn", made["base"])
    assert "stored as F8_E4M3" in caplog.text
    assert "the rewards are those of rounded weights" in caplog.text


def test_weights_that_are_there_twice_are_named(
    made: dict[str, Path], copy: Path, caplog: pytest.LogCaptureFixture
) -> None:
    describe_pair(str(made["other"]), str(made["base"]))
    assert not caplog.text
    shards = {"metadata": {}, "weight_map": {"lm_head.weight": "model-00001-of-00001.safetensors"}}
    (copy / "model.safetensors.index.json").write_text(json.dumps(shards))
    edit_json(copy / "config.json", note="other")
    describe_pair(str(copy), str(made["base"]))
    assert "weights twice: model.safetensors is used" in caplog.text


def test_configs_that_make_other_functions_of_the_same_weights_are_reported(
    made: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = Path(shutil.copytree(made["other"], tmp_path / "other"))
    edit_json(other / "config.json", eos_token_id=5, max_position_embeddings=99, use_cache=False)
    describe_pair(str(other), str(made["base"]))
    assert "config.json" not in caplog.text
    edit_json(
        other / "config.json", rms_norm_eps=0.5, rope_parameters={"rope_type": "default", "rope_theta": 5.0}
    )
    describe_pair(str(other), str(made["base"]))
    assert (
        "config.json of oracle and reference differ: rms_norm_eps 0.5 and 1e-06; rope_parameters"
        in caplog.text
    )
    assert "rope_theta 5.0 and 10000.0: was the oracle trained from this reference?" in caplog.text
    window, wide = (save_tiny(tmp_path / str(size), "mistral", sliding_window=size) for size in (5, None))
    describe_pair(str(wide), str(window))
    assert "sliding_window None and 5" in caplog.text


def test_what_holds_no_weights_to_score_says_where_they_are(made: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "run" / "checkpoint-20").mkdir(parents=True)
    (tmp_path / "run" / "checkpoint-100").mkdir()
    with pytest.raises(ModelError, match=r"only checkpoints\. Give .*run/checkpoint-100\."):
        describe_pair(str(tmp_path / "run"), str(made["base"]))
    gguf = Path(shutil.copytree(made["other"], tmp_path / "gguf"))
    (gguf / "model.safetensors").rename(gguf / "model-q4.gguf")
    with pytest.raises(ModelError, match="only GGUF files"):
        describe_pair(str(gguf), str(made["base"]))


def test_the_base_of_an_adapter_can_be_given(made: dict[str, Path], tmp_path: Path) -> None:
    adapter = Path(shutil.copytree(made["first"], tmp_path / "adapter"))
    quantised = Path(shutil.copytree(made["base"], tmp_path / "base-bnb-4bit"))
    edit_json(
        quantised / "config.json", quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True}
    )
    edit_json(adapter / "adapter_config.json", base_model_name_or_path=str(quantised))
    with pytest.raises(ModelError, match=r"adapter: the base of this adapter is .*bnb-4bit.* Pass `base`"):
        describe_pair(str(adapter), str(made["other"]))
    facts = describe_pair(str(adapter), str(made["other"]), base=str(made["base"]))
    assert facts.checkpoints[0].base.location == str(made["base"])


def test_one_tokenizer_in_two_folders_is_read_once(
    made: dict[str, Path], copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    original = description._read_tokenizer

    def counted(place: Any, trust: Any) -> Any:
        read.append(place.location)
        return original(place, trust)

    monkeypatch.setattr(description, "_read_tokenizer", counted)
    facts = describe_pair(str(made["base"]), str(made["other"]))
    assert read == [str(made["base"])]
    (copy / "special_tokens_map.json").write_text("{}")  # one more file, and both are read
    twice = describe_pair(str(copy), str(made["other"]))
    assert read[1:] == [str(copy), str(made["other"])]
    assert twice.tokenizer.get_vocab() == facts.tokenizer.get_vocab()
