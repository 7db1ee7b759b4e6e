"""A model that answers in this process: batches of conversations, padded on the left, sampled by a seed."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from transformers import GenerationConfig, PreTrainedModel

from ..errors import ModelError, PreferenceError
from ..models.checkpoints import Checkpoint
from ..models.loading import Loading, load_plain, matmul_precision
from ..models.logprobs import out_of_memory
from ..reasons import Unusable
from ..schema import Message
from ..sources.context import NO_CONTEXT, Context
from ..tokens.encoder import ResponseEncoder
from ..tokens.encoding import encode_responses, end_of_turn
from .answering import Conversation

PROBE = "x"  # in the place of the answer
UNCUT = 2**31


class Answer(NamedTuple):
    """What a model question.

    Attributes:
        text: Without the blanks around it.
        ended: Whether it ended its turn within the most tokens.
        prompt_ids: What it was given.
        token_ids: What it sampled, the end of the turn included.
    """

    text: str
    ended: bool
    prompt_ids: list[int]
    token_ids: list[int]


class LocalModel:
    """A model and its tokenizer, with the chat template of training.

    Attributes:
        encoder: The tokenizer, prepared as for training.
        checkpoint: What it is.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        encoder: ResponseEncoder,
        how: Loading,
        *,
        max_new_tokens: int,
        top_p: float,
        max_context: int | None,
    ) -> None:
        self.checkpoint, self.encoder, self.how = checkpoint, encoder, how
        self.max_new_tokens, self.top_p, self.max_context = max_new_tokens, top_p, max_context
        self.model: PreTrainedModel | None = None

    def identity(self) -> dict[str, object]:
        """Revisions, and how it computes."""
        revisions = self.checkpoint.revisions
        return {
            "model": revisions.revision,
            "base": revisions.base,
            "dtype": self.how.dtype,
            "top_p": self.top_p,
        }

    def answers(self, chats: Sequence[Conversation], temperatures: Sequence[float], seed: int) -> list[str]:
        """As `Answerer.answers`: one batch for each temperature.

        Raises:
            PreferenceError: If a conversation cannot be rendered, or is longer than the model reads.
            ModelError: If the weights cannot be loaded, or a batch does not fit into memory.
        """
        # the single turn of a user is a text prompt: the template makes the turn, if there is one
        prompts = [self.prompt(chat[0]["content"] if len(chat) == 1 else chat) for chat in chats]
        found: dict[int, Answer] = {}
        for temperature in sorted(set(temperatures)):
            places = [i for i, wanted in enumerate(temperatures) if wanted == temperature]
            batch = self.generate([prompts[i] for i in places], temperature, seed)
            found.update(zip(places, batch, strict=True))
        return [found[i].text for i in range(len(chats))]

    def prompt(self, prompt: str | list[Message], context: Context = NO_CONTEXT) -> list[int]:
        """The ids that training conditions an answer on.

        Raises:
            PreferenceError: If it cannot be rendered, or is longer than the model reads.
        """
        question = prompt if isinstance(prompt, str) else prompt[-1]["content"]
        chat = self.encoder.render(prompt, PROBE, context)
        encoded = chat if isinstance(chat, Unusable) else encode_responses(self.encoder, [chat], UNCUT)[0]
        if isinstance(encoded, Unusable):
            raise PreferenceError(f'"{question[:60]}": {encoded.reason}. Leave this question out.')
        ids: list[int] = encoded.input_ids[: encoded.positions[0]].tolist()
        if self.max_context is not None and len(ids) >= self.max_context:
            problem = f"{len(ids):,} tokens, and the model reads {self.max_context:,}"
            raise PreferenceError(f'"{question[:60]}": {problem}. Leave this question out.')
        return ids

    def generate(self, prompts: list[list[int]], temperature: float, seed: int) -> list[Answer]:
        """Answer a batch; the same prompts with the same seed alike.

        Raises:
            ModelError: If the weights cannot be loaded, or the batch does not fit into memory.
        """
        if self.model is None:
            self.model = load_plain(self.checkpoint, self.how)
        ends = self._ends(self.model)
        width = max(map(len, prompts))
        room = self.max_new_tokens if self.max_context is None else self.max_context - width
        most = max(1, min(self.max_new_tokens, room))
        with torch.inference_mode(), matmul_precision(self.how.precision):
            sampled = continued(self.model, prompts, ends, most, temperature, self.top_p, seed)
        texts = self.encoder.tokenizer.batch_decode(sampled, skip_special_tokens=True)
        return [
            Answer(str(text).strip(), bool(ids) and ids[-1] in ends, prompt, ids)
            for text, prompt, ids in zip(texts, prompts, sampled, strict=True)
        ]

    def _ends(self, model: PreTrainedModel) -> list[int]:
        """The end of a turn in the template, and the model's own stop tokens."""
        known = model.generation_config.eos_token_id
        own = known if isinstance(known, list) else [] if known is None else [known]
        turn = end_of_turn(self.encoder)
        found = [turn, *own, self.encoder.tokenizer.eos_token_id]
        return list(dict.fromkeys(one for one in found if one is not None))


def continued(
    model: Any,
    prompts: Sequence[Sequence[int]],
    ends: Sequence[int],
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    seed: int,
) -> list[list[int]]:
    """What a model says after prompts, as one batch; the same prompts with the same seed alike.

    Args:
        model: With its usual attention.
        prompts: Ids of each.
        ends: Ids that end an answer.
        max_new_tokens: Most tokens of an answer.
        temperature: 0: the most likely token each time.
        top_p: Sample from the most likely tokens that have this probability together.
        seed: Torch's generators are set to it.

    Returns:
        The new ids of each, up to an end and with it.

    Raises:
        ModelError: If the batch does not fit into memory.
    """
    width = max(map(len, prompts))
    pad = ends[0] if ends else 0
    ids = torch.tensor([[pad] * (width - len(prompt)) + list(prompt) for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    sampled = {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0}
    config = GenerationConfig(
        max_new_tokens=max_new_tokens,
        eos_token_id=list(ends) or None,
        pad_token_id=pad,
        **(sampled if temperature > 0 else {"do_sample": False}),
    )
    torch.manual_seed(seed)
    try:
        out = model.generate(
            ids.to(model.device), attention_mask=mask.to(model.device), generation_config=config
        )
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        raise ModelError(
            f"{len(prompts)} answers at once do not fit into memory. Lower `batch_size`, or pass "
            "`dtype=bfloat16`."
        ) from error
    found: list[list[int]] = out[:, width:].tolist()
    lengths = (next((i + 1 for i, one in enumerate(row) if one in ends), None) for row in found)
    return [row[:length] for row, length in zip(found, lengths, strict=True)]
