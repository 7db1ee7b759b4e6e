"""Make the embedded reference and oracle: a byte-level BPE tokenizer, SFT, then DPO, on ``training/``.

What people prefer is too subtle for a million parameters, so the oracle learns something plainer: to prefer
a response to a copy of it in which some words were swapped for words of other responses. ``pairs.jsonl`` is
made the same way. Everything needed is in this folder; the sample and ``training/heldout.jsonl.gz`` are only
evaluated. Two CPU threads and fixed seeds, so that the same machine and versions give the same files again.

    python demo/make_models.py
"""

import argparse
import copy
import gzip
import json
import math
import random
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

HERE = Path(__file__).parent
SEED = 0
VOCABULARY = 4096
CONTEXT = 1024
MAX_TOKENS = 384  # training and evaluation cut longer conversations at their end…
MIN_RESPONSE_TOKENS = 32  # …and leave out pairs with less room than this after the prompt
BATCH_TOKENS = 2048
SFT_EPOCHS, SFT_LR = 4, 3e-3
DPO_DRAWS, DPO_LR, DPO_PAIRS, BETA = 2, 5e-4, 16, 0.1  # every draw swaps other words
SPOILED = 0.2  # share of a response's words that are swapped
WORD = re.compile(
    r"[^\W\d_\u4e00-\u9fff]{3,}|[\u4e00-\u9fff]{2}"
)  # of letters, or a pair of Chinese characters
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content']"
    " + '<|im_end|>' + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

Sequence = tuple[list[int], int]  # token ids, and where the response begins
Pair = tuple[Sequence, Sequence]  # chosen, rejected


def read_pairs(path: Path) -> list[dict[str, Any]]:
    """Read preference pairs from JSON lines, gzipped or not."""
    text = gzip.decompress(path.read_bytes()).decode() if path.suffix == ".gz" else path.read_text("utf-8")
    return [json.loads(line) for line in text.splitlines()]


def words_of(rows: list[dict[str, Any]]) -> dict[bool, list[str]]:
    """All words of the responses, in Latin letters (False) and in Chinese characters (True)."""
    words: dict[bool, list[str]] = {False: [], True: []}
    for row in rows:
        for side in ("chosen", "rejected"):
            for word in WORD.findall(row[side][0]["content"]):
                words[is_chinese(word)].append(word)
    return words


def is_chinese(word: str) -> bool:
    """Whether a word is a pair of Chinese characters."""
    return "\u4e00" <= word[0] <= "\u9fff"


def spoil(text: str, words: dict[bool, list[str]], rng: random.Random) -> str:
    """Swap some words, at least one, for words of other responses."""
    found = list(WORD.finditer(text))
    count = min(len(found), max(1, round(SPOILED * len(found))))
    for match in sorted(rng.sample(found, count), key=lambda m: -m.start()):
        swapped = rng.choice(words[is_chinese(match[0])])
        text = text[: match.start()] + swapped + text[match.end() :]
    return text


def spoiled(
    rows: list[dict[str, Any]], words: dict[bool, list[str]], rng: random.Random, sides: tuple[str, ...]
) -> list[dict[str, Any]]:
    """Pairs of a response of the rows and its spoiled copy; those without a word to swap are left out."""
    pairs = []
    for row in rows:
        for side in sides:
            text = row[side][0]["content"]
            worse = spoil(text, words, rng)
            if worse != text:
                rejected = [{"role": "assistant", "content": worse}]
                pairs.append({**row, "chosen": row[side], "rejected": rejected})
    return pairs


def train_tokenizer(pairs: list[dict[str, Any]]) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE on every distinct message, and give it a chat template."""
    messages = {m["content"]: None for p in pairs for m in p["prompt"] + p["chosen"] + p["rejected"]}
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(messages, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>"],
        chat_template=TEMPLATE,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def encode(tokenizer: PreTrainedTokenizerFast, rows: list[dict[str, Any]]) -> list[Pair]:
    """Tokenise pairs: prompt, response, end of turn. Pairs whose prompt fills the window are left out."""
    pairs = []
    for row in rows:
        prompt = tokenizer.apply_chat_template(row["prompt"], tokenize=False, add_generation_prompt=True)
        prompt_ids = tokenizer.encode(str(prompt), add_special_tokens=False)
        if len(prompt_ids) > MAX_TOKENS - MIN_RESPONSE_TOKENS:
            continue
        texts = (row[side][0]["content"] + "<|im_end|>" for side in ("chosen", "rejected"))
        ids = [prompt_ids + tokenizer.encode(text, add_special_tokens=False) for text in texts]
        pairs.append(((ids[0][:MAX_TOKENS], len(prompt_ids)), (ids[1][:MAX_TOKENS], len(prompt_ids))))
    return pairs


def response_logps(model: LlamaForCausalLM, sequences: list[Sequence]) -> tuple[Tensor, ...]:
    """Log-probabilities in nats of each response's tokens, one tensor ``(T,)`` per sequence."""
    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(s) for s, _ in sequences], batch_first=True)
    hidden = model.model(input_ids=ids).last_hidden_state  # right padding: causal attention needs no mask
    read = torch.cat([hidden[i, start - 1 : len(s) - 1] for i, (s, start) in enumerate(sequences)])
    labels = torch.cat([torch.tensor(s[start:]) for s, start in sequences])
    logps = -torch.nn.functional.cross_entropy(model.lm_head(read), labels, reduction="none")
    return torch.split(logps, [len(s) - start for s, start in sequences])


def batches(sequences: list[Sequence], rng: random.Random) -> Iterator[list[Sequence]]:
    """Batches of similar length, in random order, ``BATCH_TOKENS`` at most with padding."""
    ordered = sorted(sequences, key=lambda s: (len(s[0]), rng.random()))
    groups: list[list[Sequence]] = [[]]
    for sequence in ordered:
        if len(sequence[0]) * (len(groups[-1]) + 1) > BATCH_TOKENS:
            groups.append([])
        groups[-1].append(sequence)
    rng.shuffle(groups)
    yield from groups


def warmup_cosine(optimizer: torch.optim.Optimizer, num_steps: int) -> torch.optim.lr_scheduler.LambdaLR:
    """Rise over the first twentieth of the steps, then fall to zero along a cosine."""
    warmup = max(1, num_steps // 20)
    return torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min(1.0, (step + 1) / warmup) * (1 + math.cos(math.pi * step / num_steps)) / 2,
    )


def step_by(
    loss: Tensor, optimizer: torch.optim.Optimizer, schedule: torch.optim.lr_scheduler.LambdaLR
) -> None:
    """One clipped optimizer step."""
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], 1.0)
    optimizer.step()
    schedule.step()


def train_sft(sequences: list[Sequence], tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Train the reference from scratch: next token over whole conversations."""
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=344,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    rng = random.Random(SEED)
    plan = [batch for _ in range(SFT_EPOCHS) for batch in batches(sequences, rng)]
    optimizer = torch.optim.AdamW(model.parameters(), lr=SFT_LR, betas=(0.9, 0.95), weight_decay=0.1)
    schedule = warmup_cosine(optimizer, len(plan))
    losses: list[float] = []
    for step, batch in enumerate(plan, 1):
        loss = -torch.cat(response_logps(model, batch)).mean()
        step_by(loss, optimizer, schedule)
        losses.append(loss.item())
        if step % 100 == 0 or step == len(plan):
            print(f"sft {step}/{len(plan)} loss {sum(losses[-100:]) / len(losses[-100:]):.3f}", flush=True)
    return model


def train_dpo(ref: LlamaForCausalLM, pairs: list[Pair]) -> LlamaForCausalLM:
    """Train the oracle from the reference with DPO (arXiv 2305.18290), all parameters."""
    oracle = copy.deepcopy(ref)
    rng = random.Random(SEED)
    with torch.no_grad():
        gaps = torch.stack([c.sum() - r.sum() for c, r in (response_logps(ref, list(p)) for p in pairs)])
    rows = list(range(len(pairs)))
    rng.shuffle(rows)
    plan = [rows[i : i + DPO_PAIRS] for i in range(0, len(rows), DPO_PAIRS)]
    optimizer = torch.optim.AdamW(oracle.parameters(), lr=DPO_LR, betas=(0.9, 0.95), weight_decay=0.0)
    schedule = warmup_cosine(optimizer, len(plan))
    losses: list[float] = []
    for step, batch in enumerate(plan, 1):
        logps = response_logps(oracle, [pairs[i][0] for i in batch] + [pairs[i][1] for i in batch])
        chosen, rejected = torch.stack([t.sum() for t in logps]).chunk(2)
        margin = chosen - rejected - gaps[batch]
        loss = -torch.nn.functional.logsigmoid(BETA * margin).mean()
        step_by(loss, optimizer, schedule)
        losses.append(loss.item())
        if step % 25 == 0 or step == len(plan):
            print(f"dpo {step}/{len(plan)} loss {sum(losses[-25:]) / len(losses[-25:]):.3f}", flush=True)
    return oracle


@torch.no_grad()
def evaluate(ref: LlamaForCausalLM, oracle: LlamaForCausalLM, pairs: list[Pair]) -> str:
    """Accuracy: how often the oracle's reward of the chosen response exceeds that of the rejected one."""
    wins, total, count = 0, 0.0, 0
    for pair in pairs:
        scored = zip(response_logps(oracle, list(pair)), response_logps(ref, list(pair)), strict=True)
        chosen, rejected = (by_oracle - by_ref for by_oracle, by_ref in scored)
        wins += bool(chosen.sum() > rejected.sum())
        total += float(chosen.abs().sum() + rejected.abs().sum())
        count += len(chosen) + len(rejected)
    accuracy = f"accuracy {wins}/{len(pairs)} = {wins / len(pairs):.3f}"
    return f"{accuracy}, mean |token reward| {total / count:.3f} nats"


def main() -> None:
    """Train, evaluate and save both models."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=HERE, help="where reference/ and oracle/ go")
    output = parser.parse_args().output
    torch.set_num_threads(2)  # fixed: sums in another order would give other weights
    torch.manual_seed(SEED)
    start = time.monotonic()

    heldout_path = HERE / "training" / "heldout.jsonl.gz"
    paths = sorted(set((HERE / "training").glob("*.jsonl.gz")) - {heldout_path})
    rows, heldout = [row for path in paths for row in read_pairs(path)], read_pairs(heldout_path)
    words, rng = words_of(rows), random.Random(SEED)
    sample = spoiled(read_pairs(HERE / "pairs.jsonl"), words, rng, ("chosen",))
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in sample)
    (output / "pairs.jsonl").write_text("".join(lines), "utf-8")

    tokenizer = train_tokenizer(rows)
    natural = encode(tokenizer, rows)
    conversations = [(list(i), 1) for i in dict.fromkeys(tuple(ids) for pair in natural for ids, _ in pair)]
    print(f"{len(conversations)} conversations, {sum(len(i) for i, _ in conversations)} tokens", flush=True)
    ref = train_sft(conversations, tokenizer)
    draws = [spoiled(rows, words, rng, ("chosen", "rejected")) for _ in range(DPO_DRAWS)]
    oracle = train_dpo(ref, encode(tokenizer, [row for draw in draws for row in draw]))
    for folder, model in (("reference", ref), ("oracle", oracle)):
        torch.nn.Module.to(model, torch.float16).save_pretrained(output / folder)
        tokenizer.save_pretrained(output / folder)
        # what was saved is evaluated: rounded, then computed in float32
        torch.nn.Module.to(model, torch.float32)
    spoiled_heldout = spoiled(heldout, words, rng, ("chosen",))
    for name, pairs in (
        ("sample", sample),
        ("held out", spoiled_heldout),
        ("held out, as people ranked", heldout),
    ):
        print(name, evaluate(ref, oracle, encode(tokenizer, pairs)), flush=True)
    print(f"{time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main()
