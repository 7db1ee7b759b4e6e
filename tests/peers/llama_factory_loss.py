"""Runs where LLaMA-Factory is installed: its loader, collator and SimPO trainer on an exported folder.

python llama_factory_loss.py MODEL TOKENIZED PAIRS WORK  ->  {"version": ..., "loss": ...}
"""

import json
import sys
from importlib.metadata import version

from llamafactory.data import PairwiseDataCollatorWithPadding, get_dataset, get_template_and_fix_tokenizer
from llamafactory.hparams import get_train_args
from llamafactory.model import load_model, load_tokenizer
from llamafactory.train.dpo.trainer import CustomDPOTrainer

model_name, tokenized, pairs, work = sys.argv[1:]
model_args, data_args, training_args, finetuning_args, _ = get_train_args(
    {
        "model_name_or_path": model_name,
        "stage": "dpo",
        "do_train": True,
        "finetuning_type": "full",
        "pref_loss": "simpo",
        "pref_beta": 1.0,
        "simpo_gamma": 0.0,
        "tokenized_path": tokenized,
        "dataset": "not-read",  # it asks for a name even where the data is tokenised
        "template": "default",
        "output_dir": work,
        "use_cpu": True,
        "report_to": "none",
        "infer_dtype": "float32",
    }
)
tokenizer_module = load_tokenizer(model_args)
tokenizer = tokenizer_module["tokenizer"]
template = get_template_and_fix_tokenizer(tokenizer, data_args)
data = get_dataset(template, model_args, data_args, training_args, stage="rm", **tokenizer_module)
model = load_model(tokenizer, model_args, finetuning_args, is_trainable=True).float().eval()
collator = PairwiseDataCollatorWithPadding(template=template, model=model, **tokenizer_module)
trainer = CustomDPOTrainer(
    model=model,
    ref_model=None,
    args=training_args,
    finetuning_args=finetuning_args,
    data_collator=collator,
    callbacks=[],
    train_dataset=data["train_dataset"],
    **tokenizer_module,
)
batch = collator([data["train_dataset"][row] for row in range(int(pairs))])
loss, _ = trainer.get_batch_loss_metrics(model, batch)
print(json.dumps({"version": version("llamafactory"), "loss": float(loss)}))
