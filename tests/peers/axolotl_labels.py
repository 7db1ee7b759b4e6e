"""Runs where axolotl is installed: its dataset wrapper and collator on an export, as the card's recipe says.

python axolotl_labels.py MODEL DATA RECIPE PAIRS  ->  {"version": ..., "loss": ..., "trained": [[...], ...]}
"""

import json
import sys
from importlib.metadata import version
from pathlib import Path

import torch
import yaml
from axolotl.utils.collators import DataCollatorForSeq2Seq
from axolotl.utils.data.wrappers import get_dataset_wrapper
from axolotl.utils.dict import DictDefault
from axolotl.utils.schemas.datasets import SFTDataset
from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

model_name, data, recipe, pairs = sys.argv[1:]
config = DictDefault(yaml.safe_load(Path(recipe).read_text()))
source = SFTDataset.model_validate(config.datasets[0].to_dict())
tokenizer = AutoTokenizer.from_pretrained(model_name)
raw = load_dataset(source.ds_type, data_files=data, split="train")
rows, _ = get_dataset_wrapper(
    DictDefault(source.model_dump(exclude_none=True)), tokenizer, config, source.type, raw
)
collator = DataCollatorForSeq2Seq(tokenizer, return_tensors="pt")
names = ("input_ids", "attention_mask", "labels")
batch = collator([{name: rows[row][name] for name in names} for row in range(int(pairs))])
model = AutoModelForCausalLM.from_pretrained(model_name, dtype=torch.float32).eval()
print(
    json.dumps(
        {
            "version": version("axolotl"),
            "loss": model(**batch).loss.item(),
            "trained": [[i for i in row["labels"] if i != -100] for row in rows],
        }
    )
)
