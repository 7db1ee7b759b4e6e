"""Axolotl's ``train_detail``: the chosen responses as messages, with the characters to train on.

Source: axolotl 0.19.0, ``prompt_strategies/chat_template.py``: offsets count characters of the content, ends
are inclusive, and a token trains if it lies in a span as a whole.
"""

from .target import Record, SelectedText, Target

RECIPE = """
    # sepo.yaml; run it with: axolotl train sepo.yaml
    base_model: $MODEL
    datasets:
      - path: $DATA
        ds_type: json
        type: chat_template
        message_field_training: train
        message_field_training_detail: train_detail
        roles_to_train: [assistant]
        train_on_eos: none           # spans are of the text; the end of the turn has none
    sequence_len: $LENGTH
    learning_rate: 5.0e-6
    num_epochs: 1
    micro_batch_size: 2
    gradient_accumulation_steps: 16
    optimizer: adamw_torch
    lr_scheduler: cosine
    output_dir: out
"""


def records(row: SelectedText) -> list[Record]:
    """One row per pair: its prompt, which does not train, and its chosen response."""
    context = [
        {"role": turn["role"], "content": turn["content"], "train": False, "train_detail": None}
        for turn in row.prompt
    ]
    answer = {"role": "assistant", "content": row.response, "train": None, "train_detail": _spans(row)}
    return [{"messages": [*context, answer]}]


def _spans(row: SelectedText) -> list[Record]:
    """Selected tokens that touch or share characters are one span."""
    spans: list[list[int]] = []
    for start, end in row.spans:
        if spans and start <= spans[-1][1]:
            spans[-1][1] = max(end, spans[-1][1])
        else:
            spans.append([start, end])
    return [{"begin_offset": start, "end_offset": end - 1, "train": True} for start, end in spans]


TARGET = Target(records, "train.jsonl", None, weighted=False, recipe=RECIPE)
