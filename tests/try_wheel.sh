#!/usr/bin/env bash
# Install the wheel in a fresh environment outside the checkout, and try its commands on the demo there.
set -euo pipefail
python=$1
checkout=$PWD
place=$(mktemp -d)
hub=
trap '[ -z "$hub" ] || kill $hub; rm -rf "$place"' EXIT
"$python" -m venv "$place/venv"
bin=$place/venv/bin
"$bin/pip" install --quiet -c "$checkout/constraints.txt" "$(echo "$checkout"/dist/*.whl)[report]"
cp -r "$checkout/demo" "$place/demo"
cd "$place"

# Every module, template and stylesheet of the checkout is in the wheel.
CHECKOUT=$checkout "$bin/python" - <<'END'
import os
from importlib.util import find_spec
from pathlib import Path

checkout = Path(os.environ["CHECKOUT"])
for package, folder in {"sepo_data": "sepo_data", "sepo_train": "sepo_train", "sepo_cli": "cli"}.items():
    (installed,) = find_spec(package).submodule_search_locations
    assert not Path(installed).is_relative_to(checkout), installed
    paths = {path.relative_to(checkout / folder) for path in (checkout / folder).rglob("*.*") if path.is_file()}
    wanted = {path for path in paths if path.suffix in (".py", ".j2", ".css", ".js", ".typed")}
    missing = sorted(str(path) for path in wanted if not (Path(installed) / path).is_file())
    assert wanted and not missing, f"the wheel lacks {package}: {missing}"
    print(f"{package}: {len(wanted)} files")
END

for command in "sepo" "sepo annotate" "sepo diff" "sepo evaluate" "sepo export" "sepo generate" "sepo inspect" \
    "sepo merge" "sepo push" "sepo report" "sepo reselect" "sepo verify" "sepo train sft" "sepo train dpo" \
    "sepo train sepo" "sepo-annotate" "sepo-inspect" "sepo-train" "sepo-train sft"; do
    echo "\$ $command --help"
    "$bin/"$command --help > help.txt
    grep -q Usage help.txt
done

# The Hub of the tests, on 127.0.0.1, in memory.
"$bin/python" -c '
import sys, time
sys.path.insert(0, sys.argv[1])
from hub_server import OWNER, HubServer
print(HubServer().url, OWNER, flush=True)
time.sleep(3600)' "$checkout/tests" > hub.txt &
hub=$!
until [ -s hub.txt ]; do sleep 0.2; done
read -r HF_ENDPOINT HF_TOKEN < hub.txt
export HF_ENDPOINT HF_TOKEN HF_HOME=$place/cache HF_HUB_DISABLE_XET=1 OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

try() {
    echo "\$ $*"
    "$bin/$@"
}
try sepo annotate --oracle demo/oracle --ref demo/reference --dataset demo/pairs.jsonl --output out --limit 20
grep -q "token rewards (SePO)" out/README.md # from the card's template
try sepo verify out --oracle demo/oracle --ref demo/reference --rows 4
try sepo diff out out
try sepo report out --output out.html
grep -q "<style>" out.html # from page.css
try sepo export out --to axolotl-spans --output exported
test -s exported/README.md # from the export's template
try sepo train sepo --policy demo/reference --dataset out --output policy --max-steps 1 --batch-size 2
grep -q "trained with SePO" policy/README.md # from the model card's template
try sepo push out me/out
try sepo push policy me/policy
try sepo verify me/out --oracle demo/oracle --ref demo/reference --rows 4
