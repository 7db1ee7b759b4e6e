#!/usr/bin/env bash
# Install the wheel in a fresh environment outside the checkout and run every command's --help.
set -euo pipefail
python=$1
checkout=$PWD
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
"$python" -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet -c "$checkout/constraints.txt" "$checkout"/dist/*.whl
cd "$place"
for command in "sepo" "sepo annotate" "sepo inspect" "sepo merge" "sepo push" "sepo report" "sepo train sft" \
    "sepo-annotate" "sepo-inspect" "sepo-train" "sepo-train sft" "sepo-train dpo" "sepo-train sepo"; do
    echo "\$ $command --help"
    "$place/venv/bin/"$command --help > help.txt
    grep -q Usage help.txt
done
"$place/venv/bin/python" -c 'import sepo_data, sepo_train, sepo_cli; print("from", sepo_data.__path__[0] != "'"$checkout"'/sepo_data")'
"$place/venv/bin/python" -c 'from importlib.resources import files
for name in ("page.html.j2", "page.css", "page.js"): files("sepo_data.report").joinpath(name).read_text("utf-8")'
