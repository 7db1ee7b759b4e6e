"""Tinker's Datum as JSON lines: token ids, the ids that they predict, and a float weight for each.

A chosen and a rejected line in turn, as Tinker's preference recipes have them. Source: the wire format of
``tinker.types.Datum``, as axolotl 0.19.0's ``integrations/hatchery/data.py`` writes it.
"""

import numpy as np
import numpy.typing as npt

from ..projected.pairs import ProjectedPair, ProjectedSide
from .target import Record, Target, token_weights

RECIPE = """
    import json
    import tinker
    import torch

    def sepo_loss(data, logprobs):
        means = []
        for datum, logp in zip(data, logprobs):
            weights = datum.loss_fn_inputs["weights"].to_torch()
            means.append((weights * logp).sum() / weights.sum())
        gaps = torch.stack(means[0::2]) - torch.stack(means[1::2])
        loss = -torch.nn.functional.logsigmoid(gaps).mean()
        return loss, {"loss": loss.item()}

    def datum(line):
        row = json.loads(line)
        inputs = {name: tinker.TensorData(**value) for name, value in row["loss_fn_inputs"].items()}
        tokens = row["model_input"]["chunks"][0]["tokens"]
        return tinker.Datum(model_input=tinker.ModelInput.from_ints(tokens), loss_fn_inputs=inputs)

    data = [datum(line) for line in open("$DATA")]
    client = tinker.ServiceClient().create_lora_training_client(base_model="$MODEL")
    for first in range(0, len(data), 256):  # 128 pairs: an even number of lines
        client.forward_backward_custom(data[first : first + 256], sepo_loss).result()
        client.optim_step(tinker.AdamParams(learning_rate=1e-5)).result()
"""


def records(pair: ProjectedPair) -> list[Record]:
    """Two rows per pair."""
    return [_datum(pair.chosen), _datum(pair.rejected)]


def _datum(side: ProjectedSide) -> Record:
    return {
        "model_input": {"chunks": [{"type": "encoded_text", "tokens": side.input_ids[:-1].tolist()}]},
        "loss_fn_inputs": {
            "target_tokens": _tensor(side.input_ids[1:], "int64"),
            "weights": _tensor(token_weights(side)[1:], "float32"),
        },
    }


def _tensor(values: npt.NDArray[np.generic], dtype: str) -> Record:
    return {"dtype": dtype, "shape": list(np.shape(values)), "data": values.tolist()}


TARGET = Target(records, "train.jsonl", None, weighted=True, recipe=RECIPE)
