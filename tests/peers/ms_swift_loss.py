"""Runs where ms-swift is installed: its loader, template, collator and SFT trainer on an exported file.

python ms_swift_loss.py MODEL LINES PAIRS WORK  ->  {"version": ..., "loss": ...}
"""

import json
import sys
from importlib.metadata import version

from swift.pipelines.train.sft import SwiftSft
from swift.trainers import TrainerFactory

model_name, lines, pairs, work = sys.argv[1:]
pipeline = SwiftSft(
    [
        "--model", model_name, "--dataset", lines, "--template", "dummy", "--use_chat_template", "false",
        "--loss_scale", "default", "--is_binary_loss_scale", "false", "--tuner_type", "full",
        "--output_dir", work, "--torch_dtype", "float32", "--model_type", "llama",
        "--dataset_shuffle", "false", "--remove_unused_columns", "false", "--split_dataset_ratio", "0",
        "--per_device_train_batch_size", pairs,
    ]
)  # fmt: skip
dataset, _ = pipeline._prepare_dataset()
pipeline.model = pipeline.prepare_model(
    pipeline.args, pipeline.model, template=pipeline.template, train_dataset=dataset
)
trainer = TrainerFactory.get_trainer_cls(pipeline.args)(
    model=pipeline.model,
    args=pipeline.args.training_args,
    template=pipeline.template,
    train_dataset=dataset,
    **pipeline._get_trainer_kwargs(),
)
rows = [dataset[row] for row in range(int(pairs))]
batch = trainer._prepare_inputs(trainer.data_collator(rows))
model = pipeline.model.float().eval()
loss = trainer.compute_loss(model, batch)
print(json.dumps({"version": version("ms-swift"), "loss": float(loss)}))
