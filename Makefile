# Two commands for a newcomer: `make demo` and `make test`. Both set everything up first.
PYTHON ?= python3
BIN := .venv/bin
OUT := build/demo
export TOKENIZERS_PARALLELISM := false

.PHONY: setup demo test slow lint types format clean

setup: .venv/ready

.venv/ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "pocketdraft needs Python 3.11 or newer; run make PYTHON=/path/to/it"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[export,executorch,onnx,litert-lm,dev]'
	@touch $@

# The embedded pair: export, validate, run, and the table by domain. The last line is JSON.
demo: setup
	$(BIN)/pocketdraft export --recipe mixed --out $(OUT)
	$(BIN)/pocketdraft validate $(OUT)
	$(BIN)/pocketdraft run $(OUT) --prompt '"type": "structure",' --max-tokens 96
	$(BIN)/pocketdraft bench $(OUT)

test: setup
	$(BIN)/pytest

slow: setup
	$(BIN)/pytest -m slow

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
