"""Strings that break tokenizers, through the whole annotation with real tokenizers: wrong spans and drops.

    python benchmarks/nasty_strings.py STRINGS.jsonl TOKENIZER_FOLDER…

The file has a ``text`` a line. A tiny random model stands behind each tokenizer.
"""

import itertools
import json
import sys
import tempfile
from pathlib import Path

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from sepo_data import AnnotateSettings, annotate, load_annotated
from sepo_data.text_files import DataFile, read_text_files


def save_models(tokenizer_folder: Path, place: Path) -> tuple[str, str]:
    """A random reference for this tokenizer, and an oracle that differs from it."""
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=max(tokenizer.get_vocab().values()) + 1,
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=65536,
            tie_word_embeddings=True,
        )
    )
    for role in ("ref", "oracle"):
        model.save_pretrained(place / role)
        tokenizer.save_pretrained(place / role)
        with torch.no_grad():
            model.model.embed_tokens.weight.add_(0.01 * torch.randn_like(model.model.embed_tokens.weight))
    return str(place / "oracle"), str(place / "ref")


def is_whole(row: dict[str, list[int] | str | None], side: str, text: str) -> bool:
    """Whether the text came through and the spans cover it in order, to its end."""
    start, end = row[f"{side}_token_start"], row[f"{side}_token_end"]
    assert isinstance(start, list)
    assert isinstance(end, list)
    in_order = all(a <= b for spans in (start, end) for a, b in itertools.pairwise(spans))
    no_gap = all(a >= b for a, b in zip(end, start[1:], strict=False))
    wide = all(a < b for a, b in zip(start, end, strict=True))
    covers = start[0] == 0 and end[-1] == len(text) and row[f"{side}_eos_reward"] is not None
    return row[side] == text and in_order and no_gap and wide and covers


def main(strings: Path, tokenizers: list[Path]) -> None:
    """Print one line for each tokenizer."""
    rows, _ = read_text_files([DataFile(strings.name, strings)])  # lone surrogates are repaired here as there
    texts = rows["text"][:]
    for folder in tokenizers:
        with tempfile.TemporaryDirectory() as temporary:
            place = Path(temporary)
            pairs = [
                {"prompt": "Repeat.", "chosen": t, "rejected": f"No: {t}", "n": i}
                for i, t in enumerate(texts)
            ]
            data = place / "pairs.jsonl"
            data.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
            settings = AnnotateSettings(output=place / "out", max_length=60_000)
            manifest = annotate(str(data), *save_models(folder, place), settings).manifest
            assert manifest is not None
            whole = [
                is_whole(row, side, pairs[row["n"]][side])
                for row in load_annotated(str(place / "out"))["train"]
                for side in ("chosen", "rejected")
            ]
            dropped = manifest["counts"]["dropped"]
            print(
                f"{folder.name}: {len(whole)} responses, {whole.count(False)} wrong; dropped {dropped}",
                flush=True,
            )


if __name__ == "__main__":
    main(Path(sys.argv[1]), [Path(argument) for argument in sys.argv[2:]])
