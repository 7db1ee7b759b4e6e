"""Compare log-probs and gradients with plain forward passes for all causal architectures of transformers.

    python benchmarks/architectures.py [NAME...]

Models are tiny and random, with windows and chunks short enough to matter. Each gets a line: packed, padded
or alone (how its rows are batched), the largest difference in nats, and that of a gradient relative to its
size; or refused, with the reason.
"""

import re
import sys
import warnings
from collections import Counter
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial, reduce
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.models.timm_wrapper.modeling_timm_wrapper import TimmWrapperModel
from transformers.utils import logging as transformers_logging

from sepo_data.errors import SepoError, first_line
from sepo_data.models.batching import row_padding
from sepo_data.models.checkpoints import NO_TRUST, WEIGHTS, open_checkpoint
from sepo_data.models.loading import Scorer, is_causal
from sepo_data.models.logprobs import batch_logps
from sepo_data.models.packing import Ids, is_packed, pack
from sepo_data.models.packing_check import prepare
from sepo_data.models.self_check import checked_logps

VOCABULARY = 300
LENGTHS = [(6, 9), (6, 30), (20, 3), (1, 24), (4, 7)]  # of prompt and response
TOLERANCE = 1e-3

# the most downloaded families of text models
POPULAR = [
    *("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi", "phi3", "gpt2"),
    *("gpt_neo", "gpt_neox", "gptj", "opt", "bloom", "falcon", "mpt", "cohere", "cohere2", "granite"),
    *("granitemoe", "olmo", "olmo2", "olmo3", "starcoder2", "stablelm", "smollm3", "mixtral", "qwen2_moe"),
    *("qwen3_moe", "olmoe", "glm", "glm4", "gpt_oss", "exaone4", "ernie4_5", "hunyuan_v1_dense"),
    *("mamba", "lfm2"),
]

_SIZES = [  # the first pattern that a name of the config matches says how large it is here
    (r"vocab_size", VOCABULARY),
    (r"n_group|topk_group", 1),
    (r"num_(hidden_)?layers$|n_layers?$|(de|en)coder_layers$|num_decoder_layers", 2),
    (r"rotary_dim|rope_dim", 8),
    (r"(num_key_value|n_kv|num_kv).*heads?|multi_query_group_num", 2),
    (r"head_dim|qk_.*dim|v_head|kv_channels|d_kv", 8),
    (r"(lora|latent)_(rank|dim|size)|_lora_rank", 8),
    (r"n?um.*heads|n_heads?$|attention_heads", 4),
    (r"intermediate|ffn|d_ff|n_inner|d_inner|feed_?forward|mlp_dim|block_ff", 48),
    (r"shared_layers", 0),
    (r"hidden_size|d_model|n_embd|embedding_size|embedding_dim|embed_dim|proj_dim|model_dim|^dim$", 32),
    (r"(experts_per|top_?k|moe_k)", 2),
    (r"experts|num_local", 4),
    (r"window|chunk|block_size|floor", 8),
    (r"max_position|n_positions|max_seq|seq_length|max_source|n_ctx", 64),
]


_STATED: dict[str, dict[str, Any]] = {  # fields without a usable default
    "bailing_hybrid": {"num_expert_group": 1, "linear_head_dim": 8, "linear_num_heads": 4},
    "cohere_compass_text": {
        "rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4}},
        "layer_types": ["full_attention"] * 2,
    },
    "dbrx": {
        "attn_config.rope_theta": 1e4,
        "attn_config.kv_n_heads": 2,
        "attn_config.clip_qkv": 8,
        "ffn_config.hidden_size": 32,
        "ffn_config.ffn_hidden_size": 48,
    },
    "blt": {
        "encoder_hash_byte_group_vocab": 500,
        "global_config.encoder_cross_output_size": 64,
        "patching_threshold": 1.0,
    },
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "gemma3n_text": {"activation_sparsity_pattern": [0.95, 0.0], "intermediate_size": [48, 48]},
    "llama4_text": {"no_rope_layers": [1, 0]},  # those without RoPE scale attention by the place
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "xlstm": {"hidden_size": 128, "embedding_dim": 128, "num_blocks": 2},  # what it rounds its sizes up to
    "qwen4_exp_text": {
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 8,
        "indexer_budget": 8,
        "indexer_compress_ratio": 2,
        "output_gate_type": "sigmoid",
        "ngram_vocab_size_base": 50,
        "split_ngram_parts": 2,
    },
}
_GIVEN: dict[str, dict[str, Any]] = {  # without which a config cannot be made
    "gemma3n": {
        "vision_config": {"hidden_size": 32, "vocab_offset": VOCABULARY, "vocab_size": 4},
        "audio_config": {
            "hidden_size": 32,
            "conf_num_hidden_layers": 1,
            "sscp_conv_channel_size": [8, 8],
            "vocab_offset": VOCABULARY + 4,
            "vocab_size": 4,
        },
    },
    "gemma4_assistant": {
        "text_config": {
            "model_type": "gemma4_text",
            "hidden_size_per_layer_input": 0,
            "vocab_size_per_layer_input": 0,
            "num_hidden_layers": 2,
            "num_kv_shared_layers": 2,
        }
    },
    "reformer": {
        "is_decoder": True,
        "attn_layers": ["local", "lsh"],
        "axial_pos_shape": [8, 8],
        "axial_pos_embds_dim": [8, 24],
    },
}
_OTHER_SENSES = "vision|audio|image|encodec|vqvae"
_DIVIDE = {"head_dim": 8, "num_key_value_heads": 2, "topk_group": 1, "n_group": 1, "num_experts_per_tok": 2}


@dataclass(frozen=True)
class Outcome:
    """Result for an architecture; ``kind`` is packed, padded, alone, wrong, refused or not built."""

    name: str
    kind: str
    off: float = float("nan")
    gradient_off: float = float("nan")
    why: str = ""

    def __str__(self) -> str:
        """One line of the table."""
        return f"{self.name:28s} {self.kind:10s} {self.off:8.1e} {self.gradient_off:8.1e}  {self.why}"


class Tokens(NamedTuple):
    """A sequence and the positions to score."""

    input_ids: Ids
    positions: Ids


def try_architecture(name: str) -> Outcome:
    """Score and train a tiny model and compare."""
    try:
        model = tiny(name)
    except Exception as error:
        why = _refusal(name)
        return Outcome(name, "refused" if why else "not built", why=why or first_line(error)[:120])
    try:
        return _compared(name, model)
    except SepoError as error:
        return Outcome(name, "refused", why=str(error)[:120])
    except Exception as error:
        return Outcome(name, "traceback", why=f"{type(error).__name__}: {first_line(error)}"[:120])


def _refusal(name: str) -> str | None:
    """What a command says of a folder with this model; None if it would load it."""
    with TemporaryDirectory() as folder:
        AutoConfig.for_model(name).save_pretrained(folder)
        (Path(folder) / WEIGHTS[0]).touch()
        try:
            open_checkpoint(folder, None, NO_TRUST)
        except SepoError as error:
            return str(error).removeprefix(f"{folder}: ")[:120]
    return None


def tiny(name: str) -> PreTrainedModel:
    """A tiny random model of this type, in eval mode."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(name, **_GIVEN.get(name, {}))
    _shrink(config)
    for part in vars(config).values():
        if isinstance(part, PreTrainedConfig) and not re.search(_OTHER_SENSES, part.model_type):
            _shrink(part)
    with patch.object(TimmWrapperModel, "__init__", PreTrainedModel.__init__):  # no text reaches it
        model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(8)  # so that errors exceed rounding
    torch.nn.Module.eval(model)
    shrunk: PreTrainedModel = model
    return shrunk


def _shrink(config: Any) -> None:
    for key, value in config.to_dict().items():
        if key.endswith("token_id") and isinstance(value, int):
            setattr(config, key, min(value, 2))
        elif value is None and key in _DIVIDE:
            setattr(config, key, _DIVIDE[key])
        elif isinstance(value, int) and not isinstance(value, bool):
            size = next((size for pattern, size in _SIZES if re.search(pattern, key)), value)
            setattr(config, key, min(size, value) if value > 0 else value)
        elif key in ("layer_types", "mlp_layer_types") and isinstance(value, list):
            kinds = list(dict.fromkeys(value))
            setattr(config, key, (kinds * 2)[:2])
    stated = config.to_dict()
    for key, size in _sizes_that_follow(stated).items():
        if stated.get(key) is not None:
            setattr(config, key, size)
    for key, value in _STATED.get(config.model_type, {}).items():
        *within, last = key.split(".")
        setattr(reduce(getattr, within, config), last, value)


def _sizes_that_follow(config: dict[str, Any]) -> dict[str, int]:
    """Fields that a model derives from others but the config repeats."""
    found: dict[str, int] = {}
    if config.get("kv_lora_rank"):  # latent attention: every head has a key of two parts
        found |= {"num_key_value_heads": 4, "qk_head_dim": 16, "head_dim": 8}
    if any("mamba" in key or key in ("expand", "state_size") for key in config):  # 4 heads are twice 32
        found |= {"mamba_d_head": 16, "mamba_headdim": 16, "mamba_head_dim": 16, "mamba_d_ssm": 64}
        if config["model_type"] == "mamba2":
            found["head_dim"] = 16
        if config["model_type"].startswith("zamba"):  # its attention has twice the hidden size
            found |= {"attention_hidden_size": 64, "attention_head_dim": 16, "num_key_value_heads": 4}
        if config["model_type"] == "zamba2":
            found["n_mamba_heads"] = 4
    return found


def _compared(name: str, model: PreTrainedModel) -> Outcome:
    random = np.random.default_rng(0)
    vocabulary = min(VOCABULARY, model.config.get_text_config().vocab_size)
    tokens = []
    for prompt, response in LENGTHS:
        ids = random.integers(3, vocabulary, prompt + response)
        tokens.append(Tokens(ids, np.arange(prompt, ids.size)))
    tokens.append(Tokens(np.append(tokens[0].input_ids[:6], tokens[1].input_ids[6:]), np.arange(6, 36)))
    scorer = Scorer(model, nullcontext, 1000)
    if not is_causal(scorer.probe()):
        return Outcome(name, "refused", why="not causal")
    right = [_plain(model, one).detach() for one in tokens]
    prepare(model, 64)
    found, _ = checked_logps(scorer, tokens, scorer.logps(tokens), partial(scorer.logps, tokens), first=True)
    kind = "packed" if is_packed(model) else "alone" if scorer.alone else "padded"
    off = max(float(np.abs(one - plain.numpy()).max()) for one, plain in zip(found, right, strict=True))
    gradient_off = _gradient_off(model, [tokens[:1]] if scorer.alone else [tokens[:2], tokens[2:]])
    if not (off <= TOLERANCE and gradient_off <= TOLERANCE):
        kind = "wrong"
    return Outcome(name, kind, off, gradient_off)


def _plain(model: PreTrainedModel, one: Tokens) -> torch.Tensor:
    """Log-probs of one sequence from all its logits; its last token is only predicted.

    The input is as long as in a batch, because sparse attention (DeepSeek's) breaks ties by length.
    """
    ids = torch.from_numpy(one.input_ids)
    logits: torch.Tensor = model(input_ids=ids[None, :-1], use_cache=False).logits[0].float().log_softmax(-1)
    places = torch.from_numpy(one.positions)
    return logits[places - 1, ids[places]]


def _gradient_off(model: PreTrainedModel, groups: list[list[Tokens]]) -> float:
    """Relative error of the gradient of batched log-probs against plain ones."""
    packed = is_packed(model)

    def gradient(loss: torch.Tensor) -> torch.Tensor:
        wanted = [parameter for parameter in model.parameters() if parameter.requires_grad]
        found = torch.autograd.grad(loss, wanted, allow_unused=True)
        return torch.cat([one.flatten() for one in found if one is not None])

    ours = gradient(batch_logps(model, pack(groups, padding=row_padding(model))).sum())
    if packed:
        model.set_attn_implementation("eager")
    usual = gradient(torch.cat([_plain(model, one) for group in groups for one in group]).sum())
    return float((ours - usual).norm() / usual.norm())


def main() -> None:
    """Print the table and the number of each kind."""
    transformers_logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    counts = Counter[str]()
    for name in sys.argv[1:] or sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES):
        outcome = try_architecture(name)
        counts[outcome.kind] += 1
        print(outcome, flush=True)
    print(", ".join(f"{count} {kind}" for kind, count in counts.most_common()))


if __name__ == "__main__":
    main()
