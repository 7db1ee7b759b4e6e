"""A reference and an oracle of a few thousand parameters, as folders, and pairs to annotate."""

import json
from pathlib import Path
from typing import Any

import torch
from tiny_tokenizers import CHATML, tiny_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

WORDS = [
    "Paris",
    "Rome",
    "the capital",
    "of",
    "France",
    "is",
    "a dog",
    "jumps",
    "quick",
    "中文",
    "😀",
    "x + 1",
]


def save_pair(folder: Path, *, noise: float = 0.05, template: str | None = CHATML) -> tuple[str, str]:
    """Save oracle and reference below a folder; the oracle is the reference with noise in its weights."""
    tokenizer = tiny_tokenizer("byte_bpe", template)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=32768,
        initializer_range=0.3,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    for name in ("ref", "oracle"):
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(noise * parameter.std() * torch.randn_like(parameter))
    return str(folder / "oracle"), str(folder / "ref")


def pairs(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Explicit pairs of messages, of lengths that vary."""
    generator = torch.Generator().manual_seed(seed)

    def words() -> str:
        size = int(torch.randint(1, 9, (), generator=generator))
        return " ".join(WORDS[i] for i in torch.randint(0, len(WORDS), (size,), generator=generator))

    return [
        {
            "prompt": [{"role": "user", "content": f"Say {words()}."}],
            "chosen": [{"role": "assistant", "content": f"{words()} +{row}"}],
            "rejected": [{"role": "assistant", "content": f"{words()} -{row}"}],
            "id": row,
        }
        for row in range(count)
    ]


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> str:
    """Write rows as JSON lines; surrogates stay escapes."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)
