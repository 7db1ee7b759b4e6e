"""Tiny random models, and a tokenizer for them, built in memory."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

VOCABULARY = 300

# weights so large that a forgotten scale, cap, mask or bias moves log-probs by far more than rounding does
_COMMON = {
    "vocab_size": VOCABULARY,
    "initializer_range": 0.3,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
_DECODER = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
_ONE_KV = {key: value for key, value in _DECODER.items() if key != "num_key_value_heads"}
_GEMMA = {"head_dim": 8, "query_pre_attn_scalar": 1, "sliding_window": 5, "final_logit_softcapping": 3.0}
_LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "original_max_position_embeddings": 16,
    "short_factor": [1.0] * 4,
    "long_factor": [4.0] * 4,
}

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": _DECODER,
    "qwen2": _DECODER,
    "qwen3": {**_DECODER, "head_dim": 8},
    "gemma2": {**_DECODER, **_GEMMA, "attn_logit_softcapping": 1.0},
    "gemma3_text": {**_DECODER, **_GEMMA, "layer_types": ["sliding_attention", "full_attention"]},
    "mistral": {**_DECODER, "sliding_window": 5},
    "gpt_neox": _ONE_KV,
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
    "phi3": {**_DECODER, "rope_parameters": _LONGROPE, "original_max_position_embeddings": 16},
    "cohere": {**_DECODER, "logit_scale": 0.25},
    "granite": {**_DECODER, "logits_scaling": 4.0, "residual_multiplier": 0.5, "embedding_multiplier": 3.0},
    "gpt_oss": {  # attention sinks; every expert takes part, so that rounding changes no route
        **_DECODER,
        "head_dim": 8,
        "sliding_window": 5,
        "layer_types": ["sliding_attention", "full_attention"],
        "num_local_experts": 2,
        "num_experts_per_tok": 2,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    },
    "opt": {**_ONE_KV, "ffn_dim": 48, "word_embed_proj_dim": 32, "init_std": 0.3},
    "falcon": {**_ONE_KV, "alibi": True, "new_decoder_architecture": False},
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4},
}


def tiny_model(family: str = "llama", *, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A random model of a few thousand parameters in eval mode."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(family, **{**_COMMON, **FAMILIES[family], **changes})
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for name, weights in model.named_parameters():
        if name.endswith("bias"):  # they start at 0, where a forgotten one would not show
            torch.nn.init.normal_(weights, std=0.3)
    torch.nn.Module.eval(model)
    return model


def tiny_tokenizer(*, extra: tuple[str, ...] = ()) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of at most `VOCABULARY` tokens."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    special = ["<s>", "</s>", "<pad>"]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(extra),
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(["the cat sat on the mat and the dog ran after the cat in the rain"] * 2, trainer)
    bpe.add_tokens(list(extra))
    return PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<s>", eos_token="</s>", pad_token="<pad>")


def save_tiny(folder: Path, family: str = "llama", *, seed: int = 0, **changes: Any) -> Path:
    """Write a tiny model with its tokenizer into a folder, as a user would have it."""
    tiny_model(family, seed=seed, **changes).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def save_tiny_adapter(folder: Path, base: Path, *, seed: int = 0, **settings: Any) -> Path:
    """Write a LoRA adapter with random weights for the model in ``base``."""
    from peft import LoraConfig, get_peft_model

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    torch.manual_seed(seed)
    lora = LoraConfig(
        r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", init_lora_weights=False, **settings
    )
    adapted = get_peft_model(model, lora)
    for name, weights in adapted.named_parameters():
        if weights.requires_grad and name.endswith("bias"):
            torch.nn.init.normal_(weights, std=0.3)
    adapted.save_pretrained(str(folder))
    return folder
