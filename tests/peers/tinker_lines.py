"""Runs where Tinker's client is installed: its Datum made of exported lines as the card's recipe does it.

python tinker_lines.py FILE RECIPE  ->  {"version": ..., "tokens": [...], "weight": [...]}
"""

import json
import sys
from importlib.metadata import version
from pathlib import Path

import tinker

lines, recipe = sys.argv[1:]
code = Path(recipe).read_text()
names = {"json": json, "tinker": tinker}
exec(code[code.index("def datum") : code.index("client =")], names)
data = names["data"]
print(
    json.dumps(
        {
            "version": version("tinker"),
            "tokens": [datum.model_input.length for datum in data],
            "weight": [sum(datum.loss_fn_inputs["weights"].tolist()) for datum in data],
        }
    )
)
