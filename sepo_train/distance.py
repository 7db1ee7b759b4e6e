"""How far a policy has moved from its initial model during training.

Log-probs of a batch's responses do not show this: other models or people wrote these texts. So
the policy answers a few prompts, and the KL divergence from its initial model is taken over the whole
vocabulary at each state of the answers. The training's random state is not affected.
"""

import logging
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import Trainer

from sepo_data.errors import SettingsError
from sepo_data.generation.local import continued
from sepo_data.models.adapters import attach
from sepo_data.models.distance import visited_kl
from sepo_data.models.packing import bare_model
from sepo_data.models.packing_check import usual_attention
from sepo_data.models.weights import load_base

from .examples import Example
from .inputs import Start
from .settings import TrainSettings

log = logging.getLogger("sepo")

PROMPTS = 16
NEW_TOKENS = 64
AT_ONCE = 8  # answers


class Distance:
    """Prompts, and the model that the policy started from.

    Attributes:
        most: Nats per answer at which the training ends.
    """

    def __init__(
        self, start: Start, settings: TrainSettings, examples: Sequence[Example], most: float
    ) -> None:
        """Choose the prompts, and load the initial model unless it is the policy without its new adapter.

        Raises:
            SettingsError: If no prompt leaves room for an answer.
        """
        self.most, self.seed = most, settings.seed
        self.ends = sorted({start.end_of_turn, start.encoder.tokenizer.eos_token_id} - {None})
        self.prompts = _prompts(examples, (start.description.max_context or 2**31) - NEW_TOKENS)
        if not self.prompts:
            raise SettingsError(
                f"`max_kl` needs prompts with room for {NEW_TOKENS} tokens, and the model reads "
                f"{start.description.max_context}. Leave it out."
            )
        self.start = None if settings.lora_rank is not None else _frozen(start, settings)

    def measure(self, policy: Any, dtype: torch.dtype | None, share: tuple[int, int] = (0, 1)) -> list[float]:
        """The KL divergence of each answer, in nats.

        Args:
            policy: The model in training, unwrapped; left as it was.
            dtype: Compute dtype, if it differs from that of the weights.
            share: Rank and number of the processes that divide the prompts.
        """
        device = policy.device
        prompts = self.prompts[share[0] :: share[1]]
        other = policy if self.start is None else self.start.to(device)
        as_start = policy.disable_adapter if self.start is None else nullcontext
        was_training, attention = policy.training, bare_model(policy).config._attn_implementation
        nn.Module.eval(policy)
        bare_model(policy).set_attn_implementation(usual_attention(policy))
        cuda = [device] if device.type == "cuda" else []
        try:
            with torch.random.fork_rng(devices=cuda), torch.autocast(device.type, dtype, dtype is not None):
                found = []
                for lo in range(0, len(prompts), AT_ONCE):
                    some = prompts[lo : lo + AT_ONCE]
                    # the same random numbers at every measurement reduce noise
                    answers = continued(policy, some, self.ends, NEW_TOKENS, 1.0, 1.0, self.seed + lo)
                    found += visited_kl(policy, other, some, answers, as_start)
                return found
        finally:
            bare_model(policy).set_attn_implementation(attention)
            nn.Module.train(policy, was_training)


def watched(distance: Distance, trainer: Trainer) -> dict[str, float]:
    """Measure for the log; end the training if the policy is too far from its initial model."""
    args, accelerator = trainer.args, trainer.accelerator
    dtype = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else None
    share = (accelerator.process_index, accelerator.num_processes)
    measured = distance.measure(accelerator.unwrap_model(trainer.model), dtype, share)
    sums = torch.tensor([sum(measured), len(measured)], device=accelerator.device)
    total, number = accelerator.reduce(sums, "sum").tolist()
    if (kl := total / number) > distance.most:
        trainer.control.should_training_stop = True
        log.warning(
            "step %d of %d: the KL divergence from the start is %.2f nats per answer, beyond "
            "`max_kl=%g`. The training ends here.",
            trainer.state.global_step,
            trainer.state.max_steps,
            kl,
            distance.most,
        )
    return {"kl": kl}


def _prompts(examples: Sequence[Example], most: int) -> list[list[int]]:
    """Different prompts, evenly spread over the examples."""
    found: dict[tuple[int, ...], None] = {}
    for example in examples:
        sequence = example.sequences[0]
        found[tuple(sequence.input_ids[: sequence.positions[0]].tolist())] = None
    fitting = [prompt for prompt in found if 0 < len(prompt) <= most]
    places = np.linspace(0, len(fitting) - 1, num=min(PROMPTS, len(fitting))).astype(int)
    return [list(fitting[place]) for place in places]


def _frozen(start: Start, settings: TrainSettings) -> Any:
    """Load a second copy of the initial model."""
    checkpoint = start.description.checkpoint
    model: Any = load_base(checkpoint, dtype=getattr(torch, settings.dtype), device_map=None)
    if checkpoint.adapter is not None:
        model = attach(model, checkpoint.adapter, "default")
    return model.requires_grad_(False)
