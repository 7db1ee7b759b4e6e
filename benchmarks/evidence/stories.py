"""Sample from a small model, and measure a policy's samples under its reference."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from golds import GOLDS, WORD
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache, PreTrainedTokenizerBase
from transformers.utils import logging

BATCH_LOGITS = 1e8
BATCH_READ = 100  # sequences scored at once; with more, activations no longer fit into the processor's cache
LONGEST_PAIR = 200  # tokens, roughly
Numbers = npt.NDArray[np.float64]

logging.disable_progress_bar()
logging.set_verbosity_error()


@dataclass(frozen=True, eq=False)  # hashed by identity, as a key of caches
class Stories:
    """A model and its tokenizer."""

    model: torch.nn.Module
    tokenizer: PreTrainedTokenizerBase

    @property
    def vocabulary(self) -> int:
        """Vocabulary size."""
        return int(self.model.config.vocab_size)

    @property
    def width(self) -> int:
        """Hidden size."""
        return int(self.model.config.hidden_size)

    def batch(self, tokens: int) -> int:
        """Number of sequences whose logits fit into memory at once, with this many tokens each."""
        return max(1, int(BATCH_LOGITS / (tokens * self.vocabulary)))

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, BOS included."""
        return list(self.tokenizer(text)["input_ids"])

    def continuation(self, prompt: Sequence[int], sampled: Sequence[int]) -> str:
        """Text that sampled tokens append to a prompt."""
        before, whole = (
            str(self.tokenizer.decode(ids, skip_special_tokens=True)) for ids in (prompt, [*prompt, *sampled])
        )
        return whole[len(before) :]

    def log_probs(self, logits: Tensor) -> Tensor:
        """Log-probs without special tokens: a continuation is truncated at its length and never ends."""
        logits = logits.float()
        logits[..., self.tokenizer.all_special_ids] = -torch.inf
        return torch.log_softmax(logits, -1)


def load(folder: str | Path) -> Stories:
    """Load a model folder in float32."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return Stories(model, AutoTokenizer.from_pretrained(folder))


def padded(sequences: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, attention mask and positions of left-padded sequences, ``(B, S)`` each."""
    width = max(map(len, sequences))
    ids = torch.tensor([[0] * (width - len(one)) + list(one) for one in sequences])
    mask = torch.tensor([[0] * (width - len(one)) + [1] * len(one) for one in sequences])
    return ids, mask, (mask.cumsum(-1) - 1).clamp(min=0)


@torch.no_grad()
def sampled(
    stories: Stories, prompts: Sequence[Sequence[int]], new_tokens: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Continue prompts at temperature 1.

    Each token is decided by one uniform number drawn from the seed, so similar policies write similar texts
    and differ less by chance.

    Returns:
        The new ids, ``(B, T)``, and the log-probs of the vocabulary at each of them, ``(B, T, V)``.
    """
    uniform = torch.rand(len(prompts), new_tokens, generator=torch.Generator().manual_seed(seed))
    ids, mask, positions = padded(prompts)
    past, drawn, at = DynamicCache(), [], []
    for t in range(new_tokens):
        out = stories.model(
            ids, attention_mask=mask, position_ids=positions, past_key_values=past, logits_to_keep=1
        )
        log_probs = stories.log_probs(out.logits[:, -1])
        below = (log_probs.exp().cumsum(-1) < uniform[:, t : t + 1]).sum(-1, keepdim=True)
        ids = below.clamp(max=stories.vocabulary - 1)
        drawn.append(ids)
        at.append(log_probs)
        mask = torch.cat([mask, torch.ones_like(ids)], 1)
        positions = positions[:, -1:] + 1
    return torch.cat(drawn, 1), torch.stack(at, 1)


@torch.no_grad()
def scored(stories: Stories, prompts: Sequence[Sequence[int]], new: Tensor) -> Tensor:
    """Log-probs of the vocabulary at each new token, ``(B, T, V)``."""
    wholes = [[*p, *n] for p, n in zip(prompts, new.tolist(), strict=True)]
    found = []
    for first in range(0, len(wholes), BATCH_READ):
        ids, mask, positions = padded(wholes[first : first + BATCH_READ])
        keep = new.shape[1] + 1
        out = stories.model(ids, attention_mask=mask, position_ids=positions, logits_to_keep=keep)
        found.append(stories.log_probs(out.logits[:, :-1]))
    return torch.cat(found)


@dataclass(frozen=True)
class Measured:
    """A policy's samples, one value per prompt; KL in nats, exact at each state that the policy visits."""

    golds: dict[str, list[float]]
    kl: list[float]
    nll: list[float]
    distinct: list[float]
    texts: list[str]


def measured(
    policy: Stories, reference: Stories, prompts: Sequence[str], new_tokens: int, seed: int
) -> Measured:
    """Continue each prompt once and measure the continuations."""
    encoded = [reference.encode(prompt) for prompt in prompts]
    size = reference.batch(new_tokens)
    found = Measured({name: [] for name in GOLDS}, [], [], [], [])
    for first in range(0, len(encoded), size):
        batch = encoded[first : first + size]
        new, ours = sampled(policy, batch, new_tokens, seed + first)
        theirs = scored(reference, batch, new) if policy is not reference else ours
        kl = torch.where(ours.isinf(), 0, ours.exp() * (ours - theirs)).sum(-1)
        found.kl.extend(kl.sum(-1).tolist())
        found.nll.extend((-theirs.gather(-1, new[..., None])[..., 0].mean(-1)).tolist())
        for prompt, ids in zip(batch, new.tolist(), strict=True):
            text = reference.continuation(prompt, ids)
            words = [word.lower() for word in WORD.findall(text)]
            found.distinct.append(len(set(words)) / max(1, len(words)))
            found.texts.append(text)
            for name, gold in GOLDS.items():
                found.golds[name].append(gold(text))
    return found


@torch.no_grad()
def response_logps(stories: Stories, pairs: Sequence[dict[str, str]], side: str) -> Numbers:
    """Log-prob of each pair's response given its prompt, ``(B,)``."""
    found: list[float] = []
    size = min(BATCH_READ, stories.batch(LONGEST_PAIR))
    for first in range(0, len(pairs), size):
        batch = pairs[first : first + size]
        prompts = [stories.encode(pair["prompt"]) for pair in batch]
        wholes = [stories.encode(pair["prompt"] + pair[side]) for pair in batch]
        ids, mask, positions = padded(wholes)
        logits = stories.model(ids, attention_mask=mask, position_ids=positions).logits[:, :-1].float()
        log_probs = torch.log_softmax(logits, -1).gather(-1, ids[:, 1:, None])[..., 0]
        for one, prompt, whole in zip(log_probs, prompts, wholes, strict=True):
            found.append(float(one[len(prompt) - len(whole) :].sum()))
    return np.array(found)


def first_sentence(text: str) -> str | None:
    """First sentence of a sampled story, if it is long enough and something follows it."""
    match = re.match(r'[^.!?"\n]{25,}?[.!?](?=\s)', text.strip())
    return match[0] if match else None
