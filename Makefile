PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: demo pipeline test slow torture peers evidence evidence-quick mutants check fix wheel docs browser coverage lowest newest

# Annotate the bundled sample with the bundled models and show what came out.
demo: $(INSTALLED)
	rm -rf out/demo
	$(BIN)/sepo-annotate --oracle demo/oracle --ref demo/reference --dataset demo/pairs.jsonl --output out/demo
	$(BIN)/sepo-inspect out/demo --row 13

# Run the page: its lines that begin with "$" are the commands.
pipeline: $(INSTALLED)
	rm -rf out/pipeline
	PATH="$(CURDIR)/$(BIN):$$PATH" sh -exc "$$(sed -n 's/^    \$$ //p' docs/pipeline.md)"

test: $(INSTALLED)
	$(BIN)/python -m pytest -n 3

slow: $(INSTALLED)
	$(BIN)/pip install --quiet -c constraints.txt -e '.[ray]'
	$(BIN)/python -m pytest -m slow

# Kill workers a thousand times, fill disks, damage chunks; `slow` does a tenth of it.
torture: $(INSTALLED)
	SEPO_TORTURE_KILLS=1000 $(BIN)/python -m pytest -m slow tests/torture

# Lines of the packages that the tests run; subprocesses are not counted.
coverage: $(INSTALLED)
	$(BIN)/pip install --quiet -c constraints.txt -e '.[coverage]'
	$(BIN)/python -m pytest -n 3 --cov --cov-report term:skip-covered --cov-report html:out/coverage $(TESTS)

# The tests with the lowest versions that pyproject.toml declares, and with the newest on the index. Both use
# the torch of constraints.txt: other builds bring gigabytes of CUDA libraries, so its lower bound is not tested.
lowest:
	rm -rf .lowest
	$(PYTHON) -m venv .lowest
	$(PYTHON) tests/lowest.py > .lowest/constraints.txt
	.lowest/bin/pip install --quiet -c .lowest/constraints.txt '.[test]' $$(grep '^torch==' constraints.txt)
	.lowest/bin/python -m pytest $(TESTS)

newest:
	rm -rf .newest
	$(PYTHON) -m venv .newest
	.newest/bin/pip install --quiet '.[test]' $$(grep '^torch==' constraints.txt)
	.newest/bin/python -m pytest $(TESTS)

# Let other trainers, each in an environment of its own, read what `sepo export` writes, and compare losses.
peers: $(INSTALLED) .peers/llama-factory .peers/ms-swift .peers/tinker .peers/axolotl
	$(BIN)/python -m pytest -m 'slow or not slow' -s tests/peers tests/test_exports.py

.peers/llama-factory:
	$(PYTHON) -m venv $@
	$@/bin/pip install --quiet llamafactory==0.9.5 || (rm -rf $@; false)

.peers/ms-swift:
	$(PYTHON) -m venv $@
	$@/bin/pip install --quiet ms-swift==4.6.0 || (rm -rf $@; false)

# Only what reads data: its other dependencies are kernels for GPUs, clouds and services, in pinned versions.
.peers/axolotl:
	$(PYTHON) -m venv $@
	$@/bin/pip install --quiet $$(grep '^torch==' constraints.txt) transformers==5.16.1 datasets==4.8.4 trl==1.9.0 peft==0.20.0 \
		accelerate==1.13.0 pydantic==2.12.5 posthog==6.7.11 addict colorama fire numba requests || (rm -rf $@; false)
	$@/bin/pip install --quiet --no-deps axolotl==0.19.0 || (rm -rf $@; false)

.peers/tinker:
	$(PYTHON) -m venv $@
	$@/bin/pip install --quiet tinker==0.38.0 || (rm -rf $@; false)

# Train, annotate and measure everything that docs/evidence.md says, and write it again: one and a half to two hours on two cores.
evidence: $(INSTALLED)
	$(BIN)/pip install --quiet -c constraints.txt -e '.[evidence]'
	$(BIN)/python benchmarks/evidence/grid.py
	$(BIN)/python benchmarks/evidence/tokens.py
	$(BIN)/python benchmarks/evidence/report.py

# The same machinery in minutes; its numbers say nothing.
evidence-quick: $(INSTALLED)
	rm -rf out/evidence-quick
	mkdir -p out/evidence-quick/docs
	$(BIN)/pip install --quiet -c constraints.txt -e '.[evidence]'
	$(BIN)/python benchmarks/evidence/grid.py --plan benchmarks/evidence/quick.yaml --output out/evidence-quick
	$(BIN)/python benchmarks/evidence/tokens.py --output out/evidence-quick
	$(BIN)/python benchmarks/evidence/report.py --plan benchmarks/evidence/quick.yaml --output out/evidence-quick \
		--docs out/evidence-quick/docs

# Plant small faults in the modules that pyproject.toml lists, and list those that no test of theirs notices.
# Not in CI: a module takes minutes. MUTANTS='sepo_data.selection*' tries those of one.
mutants: $(INSTALLED)
	$(BIN)/pip install --quiet -c constraints.txt -e '.[mutants]'
	OMP_NUM_THREADS=1 $(BIN)/mutmut run $(MUTANTS)
	$(BIN)/mutmut results

check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

fix: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Build the site of docs/ into out/site; a broken link or a page that no menu shows is an error.
docs: $(INSTALLED)
	$(BIN)/pip install --quiet -c constraints.txt -e '.[docs]'
	$(BIN)/python -m mkdocs build --strict --quiet

# Open the report in Debian's Chromium: slider, keys, filters, nasty texts, axe-core.
browser: $(INSTALLED)
	$(BIN)/pip install --quiet -c constraints.txt -e '.[browser]'
	command -v chromium > /dev/null || (apt-get update -qq && apt-get install -y -qq chromium > /dev/null)
	$(BIN)/python -m pytest tests/browser

# Build the wheel and try it where the checkout is not: a fresh environment, another folder.
wheel: $(INSTALLED)
	rm -rf build dist
	$(BIN)/python -m build --wheel --outdir dist .
	tests/try_wheel.sh $(PYTHON)

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet -c constraints.txt -e '.[test]'
	touch $@
