# Two commands for a newcomer: `make demo` and `make test`. Both set everything up first.
PYTHON ?= python3
BIN := .venv/bin
OUT := build/demo
BACKENDS := litert executorch onnx
export TOKENIZERS_PARALLELISM := false

.PHONY: setup demo test slow phone lint types format clean

setup: .venv/ready

.venv/ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "pocketdraft needs Python 3.11 or newer; run make PYTHON=/path/to/it"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[export,executorch,onnx,litert-lm,dev]'
	@touch $@

# The embedded pair for every backend in every recipe: export, validate, run, and the tables. The last line is JSON.
demo: setup
	$(BIN)/pocketdraft export --backend all --recipe mixed --out $(OUT)/mixed
	for recipe in f32 w8 w4; do \
		$(BIN)/pocketdraft export --backend all --recipe $$recipe --drafts 4 --prefill 64 --out $(OUT)/$$recipe || exit; done
	$(BIN)/pocketdraft validate $(OUT)/mixed/litert
	$(BIN)/pocketdraft run $(OUT)/mixed/litert --prompt '"type": "structure",' --max-tokens 96
	$(BIN)/pocketdraft bench $(foreach recipe,mixed f32 w8 w4,$(foreach backend,$(BACKENDS),$(OUT)/$(recipe)/$(backend)))

test: setup
	$(BIN)/pytest

# Minutes, not seconds. What needs an emulator or a driver is skipped without it; `make phone` brings both.
slow: setup
	$(BIN)/pytest -m 'slow or arm64 or gpu' -rs

# For Debian and its kin: an emulated arm64 and a software GPU, under build/.
phone: setup
	tests/arm64/setup.sh
	tests/gpu/setup.sh

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# mypy finds packages by folder, not by pyproject's package-dir: give it the folders under their real names.
types: setup
	@mkdir -p build/types/pocketdraft
	@for package in export quantize runtime; do ln -sfn ../../../$$package build/types/pocketdraft/$$package; done
	MYPYPATH=build/types $(BIN)/mypy --explicit-package-bases -p pocketdraft

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv build *.egg-info
