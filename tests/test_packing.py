"""Tests of packed batches: against plain forward passes, and with planted faults."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from test_logprobs import OUT_OF_MEMORY, LittleMemory, Tokens, plain_logps
from tiny_models import FAMILIES, VOCABULARY, save_tiny, save_tiny_adapter, tiny_model
from torch.utils.checkpoint import checkpoint
from transformers import AttentionInterface, AutoConfig, AutoModelForCausalLM, PreTrainedModel

from sepo_data.models import logprobs
from sepo_data.models import packing_check as fast_path
from sepo_data.models.description import describe_pair
from sepo_data.models.loading import Loading, load_pair
from sepo_data.models.logprobs import Logps, batch_logps, token_logps
from sepo_data.models.packing import PACKED_ATTENTION, Layout, Packed, is_packed, pack, packed_attention
from sepo_data.models.packing_check import prepare

PADDED = {"falcon", "bloom"}  # ALiBi


def sequences(*groups: tuple[int, ...], seed: int = 0) -> list[Tokens]:
    """For each tuple, a prompt of the first length and responses of the other lengths."""
    rng = np.random.default_rng(seed)
    found = []
    for prompt_length, *lengths in groups:
        prompt = rng.integers(0, VOCABULARY, prompt_length)
        for length in lengths:
            ids = np.concatenate([prompt, rng.integers(0, VOCABULARY, length)])
            found.append(Tokens(ids, np.arange(prompt_length, ids.size)))
    return found


MIXED = ((6, 9, 20), (20, 3, 11), (1, 30, 2), (12, 1, 1), (4, 7, 2, 15, 3), (9, 25))


def assert_like_plain(model: PreTrainedModel, scored: list[Logps], tokens: list[Tokens]) -> None:
    plain = tiny_model(model.config.model_type)
    for logps, item in zip(scored, tokens, strict=True):
        np.testing.assert_allclose(logps, plain_logps(plain, item), atol=1e-4, rtol=0)


def test_a_pair_is_packed_with_its_prompt_once() -> None:
    # prompt 5 6, responses 7 8 and 9; the last token of each is predicted only, so it is left out
    chosen = Tokens(np.array([5, 6, 7, 8]), np.array([2, 3]))
    rejected = Tokens(np.array([5, 6, 9]), np.array([2]))
    packed = pack([[chosen, rejected]], padding=0.0)
    assert packed.input_ids.tolist() == [5, 6, 7]
    assert packed.position_ids.tolist() == [0, 1, 2]
    assert [rows.tolist() for rows in packed.layout.rows] == [[[0, 1, 2]], [[0, 1]]]
    assert packed.predicting.tolist() == [1, 2, 1]  # the prompt's last token predicts both first ones
    assert packed.labels.tolist() == [7, 8, 9]
    assert packed.layout.back.tolist() in ([0, 1, 2], [3, 4, 2])


def test_positions_go_back_to_the_end_of_the_prompt() -> None:
    packed = pack([sequences((3, 4, 3)), sequences((2, 2))], padding=0.0)
    assert packed.position_ids.tolist() == [0, 1, 2, 3, 4, 5, 3, 4, 0, 1, 2]


def test_responses_that_begin_alike_share_what_they_have_in_common() -> None:
    same = np.arange(10)
    longer = np.append(same, 11)
    packed = pack([[Tokens(same, np.array([4, 9])), Tokens(longer, np.array([4, 10]))]], padding=0.0)
    assert packed.input_ids.tolist() == list(range(10))


@pytest.mark.parametrize(
    ("padding", "shapes"),
    [(0.0, [(2, 10), (1, 9), (1, 5)]), (0.25, [(3, 10), (1, 5)]), (float("inf"), [(4, 10)])],
)
def test_rows_are_padded_together_when_they_are_about_as_long(
    padding: float, shapes: list[tuple[int, int]]
) -> None:
    packed = pack([[item] for item in sequences((1, 10), (1, 5), (1, 9), (1, 10))], padding=padding)
    assert [tuple(rows.shape) for rows in packed.layout.rows] == shapes
    back, flat = packed.layout.back, torch.cat([rows.flatten() for rows in packed.layout.rows])
    assert flat[back].tolist() == list(range(packed.input_ids.numel()))


@pytest.mark.parametrize("batch_tokens", [1, 60, 1000], ids=["one by one", "small batches", "one batch"])
@pytest.mark.parametrize("family", FAMILIES)
def test_log_probs_of_packed_batches_equal_those_of_a_plain_forward(family: str, batch_tokens: int) -> None:
    model = tiny_model(family)
    assert prepare(model, 64) == (family not in PADDED)
    tokens = sequences(*MIXED)
    assert_like_plain(model, token_logps(model, tokens, batch_tokens=batch_tokens), tokens)


@pytest.mark.parametrize("padding", [0.0, 0.25, float("inf")])
@pytest.mark.parametrize("family", sorted(FAMILIES.keys() - PADDED))
def test_the_padding_of_rows_changes_no_log_prob(family: str, padding: float) -> None:
    model = tiny_model(family)
    assert prepare(model, 64)
    tokens = [item for item in sequences(*MIXED) if item.input_ids.size <= 16 or family != "phi3"]
    with torch.no_grad():
        flat = batch_logps(model, pack([[item] for item in tokens], padding=padding)).numpy()
    ends = np.cumsum([item.positions.size for item in tokens])[:-1]
    assert_like_plain(model, np.split(flat, ends), tokens)


@pytest.mark.parametrize("family", ["llama", "gemma2", "mistral", "gpt2"])
def test_other_neighbours_change_no_log_prob(family: str) -> None:
    model = tiny_model(family)
    assert prepare(model, 64)
    pair = sequences((7, 12, 5))
    alone = token_logps(model, pair, batch_tokens=1000)
    for seed in (1, 2, 3):
        strangers = sequences((3, 9, 9), (8, 25, 2), seed=seed)
        together = token_logps(model, [*strangers[:2], *pair, *strangers[2:]], batch_tokens=1000)[2:4]
        for ours, theirs in zip(together, alone, strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-5, rtol=0)


def computed_tokens(model: PreTrainedModel) -> list[int]:
    """Filled with the tokens of each forward pass."""
    seen: list[int] = []
    model.get_input_embeddings().register_forward_hook(lambda module, args, out: seen.append(args[0].numel()))
    return seen


def test_four_answers_to_a_prompt_compute_it_once() -> None:
    # 10 + 4 x 5 tokens, of which the last of each response is not read: 26; apart it would be 4 x 14
    model = tiny_model()
    assert prepare(model, 64)
    seen = computed_tokens(model)
    token_logps(model, sequences((10, 5, 5, 5, 5)), batch_tokens=1000)
    assert seen == [26]


def test_answers_to_one_prompt_are_divided_when_they_are_too_many_for_a_batch() -> None:
    # each costs 10 + 4 tokens alone, and two 18
    model = tiny_model()
    assert prepare(model, 64)
    seen = computed_tokens(model)
    token_logps(model, sequences((10, 5, 5, 5, 5)), batch_tokens=20)
    assert seen == [18, 18]


def test_a_pair_that_does_not_fit_into_memory_is_scored_one_response_at_a_time() -> None:
    # prompt and both responses are 10 + 4 + 4 = 18 tokens; 14 fit
    model, tokens = tiny_model(), sequences((10, 5, 5))
    assert prepare(model, 64)
    plenty = token_logps(model, tokens, batch_tokens=1000)
    little = LittleMemory(model.get_input_embeddings(), 14, OUT_OF_MEMORY[0])
    model.set_input_embeddings(little)
    scored = token_logps(model, tokens, batch_tokens=1000)
    assert little.seen == [18, 14, 14]
    for ours, theirs in zip(scored, plenty, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("family", sorted(FAMILIES.keys() - PADDED))
def test_a_head_in_parts_gives_the_same_log_probs(family: str) -> None:
    model = tiny_model(family)
    assert prepare(model, 64)
    tokens = [item for item in sequences(*MIXED) if item.input_ids.size <= 16 or family != "phi3"]
    rows: list[int] = []
    model.get_output_embeddings().register_forward_hook(
        lambda module, args, logits: rows.append(logits[..., 0].numel())
    )
    packed = pack([[item] for item in tokens], padding=0.0)
    with torch.no_grad():
        flat = batch_logps(model, packed, head_elements=7 * VOCABULARY).numpy()
    ends = np.cumsum([item.positions.size for item in tokens])[:-1]
    assert_like_plain(model, np.split(flat, ends), tokens)
    assert max(rows) == 7


Attention = Callable[..., tuple[torch.Tensor, None]]


def neighbours_seen(
    module: Any, query: Any, key: Any, value: Any, layout: Layout, **kwargs: Any
) -> tuple[torch.Tensor, None]:
    """One causal row of all packed tokens."""
    everything = torch.arange(layout.back.numel())
    return packed_attention(module, query, key, value, Layout((everything[None],), everything), **kwargs)


def back_mixed_up(
    module: Any, query: Any, key: Any, value: Any, layout: Layout, **kwargs: Any
) -> tuple[torch.Tensor, None]:
    """Swap the attention of two tokens."""
    back = layout.back.clone()
    back[[3, 4]] = back[[4, 3]]
    return packed_attention(module, query, key, value, replace(layout, back=back), **kwargs)


def window_too_wide(
    *args: Any, sliding_window: int | None = None, **kwargs: Any
) -> tuple[torch.Tensor, None]:
    """One token more than the window."""
    wider = None if sliding_window is None else sliding_window + 1
    return packed_attention(*args, sliding_window=wider, **kwargs)


def window_ignored(*args: Any, sliding_window: int | None = None, **kwargs: Any) -> tuple[torch.Tensor, None]:
    """Every token before, however wide the window."""
    return packed_attention(*args, **kwargs)


def cap_dropped(*args: Any, softcap: float | None = None, **kwargs: Any) -> tuple[torch.Tensor, None]:
    """Scores without their soft cap."""
    return packed_attention(*args, **kwargs)


def scale_dropped(*args: Any, scaling: float, **kwargs: Any) -> tuple[torch.Tensor, None]:
    """Scores by the usual scale, not the layer's."""
    return packed_attention(*args, **kwargs)


@contextmanager
def attention(function: Attention) -> Iterator[None]:
    AttentionInterface.register(PACKED_ATTENTION, function)
    try:
        yield
    finally:
        AttentionInterface.register(PACKED_ATTENTION, packed_attention)


@pytest.mark.parametrize(
    ("wrong", "family"),
    [
        (neighbours_seen, "llama"),
        (back_mixed_up, "llama"),
        (window_too_wide, "mistral"),
        (window_too_wide, "gemma3_text"),
        (window_ignored, "mistral"),
        (window_ignored, "gpt_oss"),
        (cap_dropped, "gemma2"),
        (scale_dropped, "gemma2"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_wrong_attention_is_found_out(
    wrong: Attention, family: str, dtype: torch.dtype, caplog: pytest.LogCaptureFixture
) -> None:
    model = tiny_model(family).to(dtype)  # type: ignore[arg-type]
    usual = model.config._attn_implementation
    with attention(wrong), caplog.at_level(logging.INFO, "sepo"):
        assert not prepare(model, 64)
    (line,) = caplog.messages
    assert line.startswith(
        f"{type(model).__name__}: batches are padded, because packed batches give log-probs"
    )
    assert model.config._attn_implementation == usual


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", sorted(FAMILIES.keys() - PADDED))
def test_a_right_attention_is_taken_in_every_precision(family: str, dtype: torch.dtype) -> None:
    assert prepare(tiny_model(family).to(dtype), 64)  # type: ignore[arg-type]


def test_positions_that_do_not_begin_anew_are_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def on_from_the_last(*args: Any, **kwargs: Any) -> Packed:
        packed = pack(*args, **kwargs)
        return replace(packed, position_ids=torch.arange(packed.input_ids.numel()))

    monkeypatch.setattr(fast_path, "pack", on_from_the_last)
    assert not prepare(tiny_model(), 64)


def test_a_head_that_loses_its_soft_cap_in_parts_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def by_hand(model: Any, bare: Any, inputs: Any, packed: Packed, head_rows: int) -> torch.Tensor:
        hidden = bare.model(**inputs).last_hidden_state[0][packed.predicting]
        return logprobs._label_logps(bare.lm_head(hidden), packed.labels)

    monkeypatch.setattr(logprobs, "_logps_in_parts", by_hand)
    assert prepare(tiny_model("llama"), 64)
    assert not prepare(tiny_model("gemma2"), 64)


def test_a_window_matters_only_to_sequences_that_are_longer() -> None:
    with attention(window_too_wide):
        assert prepare(tiny_model("mistral", sliding_window=40, max_position_embeddings=128), longest=30)
        assert not prepare(tiny_model("mistral", sliding_window=40, max_position_embeddings=128), longest=128)


_STATE = {"hidden_size": 32, "num_hidden_layers": 2}
_ATTENTION = {"intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
_WINDOWS = {"local_attention": 8, "global_attn_every_n_layers": 2, "max_position_embeddings": 64}
_LLAMA4 = {"head_dim": 8, "intermediate_size_mlp": 48, "num_local_experts": 2, "no_rope_layers": [1, 0]}
OTHERS: dict[str, dict[str, Any]] = {
    "mamba": {**_STATE, "state_size": 4},
    "lfm2": {**_STATE, **_ATTENTION, "layer_types": ["conv", "full_attention"]},
    "gptj": {"n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4, "n_positions": 64},
    "mpt": {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 64},
    "modernbert-decoder": {**_STATE, **_ATTENTION, **_WINDOWS, "pad_token_id": 0},
    "stablelm": {**_STATE, **_ATTENTION, "use_parallel_residual": True, "qk_layernorm": True},
    "nemotron": {**_STATE, **_ATTENTION},
    "llama4_text": {**_STATE, **_ATTENTION, **_LLAMA4},
}


def other_model(family: str, **changes: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    sizes = {"vocab_size": VOCABULARY, "initializer_range": 0.3, **OTHERS[family], **changes}
    config = AutoConfig.for_model(family, **sizes)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    torch.nn.Module.eval(model)
    return model


@pytest.mark.parametrize("family", ["mamba", "lfm2", "gptj", "mpt"])
def test_a_model_that_packing_does_not_suit_gets_right_log_probs(family: str) -> None:
    model, tokens = other_model(family), sequences(*MIXED)
    plain = [plain_logps(model, item) for item in tokens]
    packed = prepare(model, 64)
    assert not packed or family == "gptj"  # which transformers 5.24 can pack
    for logps, expected in zip(token_logps(model, tokens, batch_tokens=1000), plain, strict=True):
        np.testing.assert_allclose(logps, expected, atol=1e-4, rtol=0)


# modernbert calls its head decoder; layers of stablelm and nemotron pass no unknown keyword on
@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("modernbert-decoder", {}),
        ("stablelm", {}),
        ("nemotron", {}),
        ("llama4_text", {"attn_temperature_tuning": False}),
    ],
)
def test_a_model_whose_layers_pass_on_little_is_packed(family: str, changes: dict[str, Any]) -> None:
    model, tokens = other_model(family, **changes), sequences(*MIXED)
    plain = [plain_logps(model, item) for item in tokens]
    right = gradient(model, [plain_batch(model, item) for item in tokens])
    assert prepare(model, 64)
    for logps, expected in zip(token_logps(model, tokens, batch_tokens=1000), plain, strict=True):
        np.testing.assert_allclose(logps, expected, atol=1e-4, rtol=0)
    model.train()
    again = partial(checkpoint, use_reentrant=False)  # layers run a second time in the backward pass
    model._set_gradient_checkpointing(gradient_checkpointing_func=again)
    found = gradient(model, [batch_logps(model, pack([tokens[:2], tokens[2:4]], padding=0.0))])
    found += gradient(model, [batch_logps(model, pack([[item] for item in tokens[4:]], padding=0.0))])
    assert float((found - right).norm() / right.norm()) < 1e-5


def plain_batch(model: PreTrainedModel, item: Tokens) -> torch.Tensor:
    """Log-probs of one sequence from a plain forward pass, with gradients."""
    ids = torch.from_numpy(item.input_ids)
    logits: torch.Tensor = model(input_ids=ids[None, :-1], use_cache=False).logits[0]
    return logits.float().log_softmax(-1)[item.positions - 1, ids[item.positions]]


def gradient(model: PreTrainedModel, logps: list[torch.Tensor]) -> torch.Tensor:
    found = torch.autograd.grad(torch.cat(logps).sum(), list(model.parameters()), allow_unused=True)
    return torch.cat([one.flatten() for one in found if one is not None])


def test_attention_that_looks_at_the_place_in_the_batch_is_not_packed() -> None:
    # from place 200 on Llama 4 scales it; no row is that long, and neither is what is tried by default
    model, tokens = other_model("llama4_text", floor_scale=200), sequences(*MIXED)
    plain = [plain_logps(model, item) for item in tokens]
    assert not prepare(model, 64)
    for logps, expected in zip(token_logps(model, tokens * 3, batch_tokens=1000), plain * 3, strict=True):
        np.testing.assert_allclose(logps, expected, atol=1e-4, rtol=0)


def test_a_model_in_training_stays_so() -> None:
    model = tiny_model()
    model.train()
    assert prepare(model, 64)
    assert model.training


def test_oracle_and_reference_on_one_base_are_tried_in_both_roles(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = save_tiny(tmp_path / "base")
    oracle = save_tiny_adapter(tmp_path / "oracle", base)
    facts = describe_pair(str(oracle), str(base))
    models = load_pair(facts, Loading(device="cpu"))
    assert models.oracle.model is models.ref.model
    assert is_packed(models.ref.model)
    tokens = sequences(*MIXED)
    packed = [models.oracle.logps(tokens), models.ref.logps(tokens)]

    # an adapter whose attention goes wrong: then neither role may be packed
    def wrong_with_adapter(module: Any, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, None]:
        disabled = module.q_proj.disable_adapters
        return (packed_attention if disabled else neighbours_seen)(module, *args, **kwargs)

    with attention(wrong_with_adapter):
        models = load_pair(facts, Loading(device="cpu"))
    assert not is_packed(models.ref.model)
    for ours, theirs in zip(packed, [models.oracle.logps(tokens), models.ref.logps(tokens)], strict=True):
        for one, other in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-5)


needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@needs_cuda
@pytest.mark.parametrize("family", FAMILIES)
def test_packed_log_probs_on_cuda_equal_those_of_the_cpu(family: str) -> None:
    torch.set_float32_matmul_precision("highest")
    model = tiny_model(family).to("cuda")  # type: ignore[arg-type]
    assert prepare(model, 64) == (family not in PADDED)
    tokens = sequences(*MIXED)
    assert_like_plain(model, token_logps(model, tokens, batch_tokens=1000), tokens)


@needs_cuda
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("family", sorted(FAMILIES.keys() - PADDED))
def test_half_precision_on_cuda_is_packed_too(family: str, dtype: torch.dtype) -> None:
    assert prepare(tiny_model(family).to("cuda", dtype), 64)  # type: ignore[arg-type]


@needs_cuda
def test_gradients_on_cuda_equal_those_of_the_cpu() -> None:
    gradients: list[npt.NDArray[np.float64]] = []
    for device in ("cpu", "cuda"):
        model = tiny_model().double().to(device)  # type: ignore[arg-type]
        assert prepare(model, 64)
        packed = pack([sequences((6, 9, 20)), sequences((3, 8, 2))], padding=0.25).to(device)
        batch_logps(model, packed).sum().backward()
        flat = torch.cat([weights.grad.flatten() for weights in model.parameters()])
        gradients.append(flat.cpu().numpy())
    np.testing.assert_allclose(gradients[1], gradients[0], rtol=1e-5, atol=1e-6)


@needs_cuda
def test_a_batch_is_pinned_and_copied_whole() -> None:
    packed = pack([sequences((6, 9, 20))], padding=0.0).pin_memory()
    assert packed.input_ids.is_pinned()
    there = packed.to("cuda", non_blocking=True)
    assert all(rows.is_cuda for rows in there.layout.rows)
    assert there.labels.cpu().tolist() == packed.labels.tolist()
