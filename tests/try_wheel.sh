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
for package, names in {
    "sepo_data.report": ["page.html.j2", "charts.html.j2", "dataset.html.j2", "page.css", "page.js", "rows.js"],
    "sepo_train": ["model_card.md.j2", "run.html.j2"],
}.items():
    for name in names: files(package).joinpath(name).read_text("utf-8")'
