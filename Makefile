# Two commands for a newcomer: `make demo` and `make test`. Both set everything up first.
PYTHON ?= python3
BIN := .venv/bin
OUT := build/demo
BACKENDS := litert executorch onnx
export TOKENIZERS_PARALLELISM := false

.PHONY: setup demo bench compare test slow distribution android apk android-test android-runtimes arm64 gpu lint types format clean

setup: .venv/ready

.venv/ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "pocketdraft needs Python 3.11 or newer; run make PYTHON=/path/to/it"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[export,executorch,onnx,litert-lm,serve,sweep,dev]'
	@touch $@

# The embedded pair for every backend in every recipe: export, validate, run, and the tables. The last line is JSON.
demo: setup
	$(BIN)/pocketdraft export --backend all --recipe mixed --out $(OUT)/mixed
	printf '%s\n' f32 w8 w4 | xargs -P 2 -I RECIPE \
		$(BIN)/pocketdraft export --backend all --recipe RECIPE --drafts 4 --prefill 64 --out $(OUT)/RECIPE --quiet
	$(BIN)/pocketdraft validate $(OUT)/mixed/litert
	$(BIN)/pocketdraft run $(OUT)/mixed/litert --prompt '"type": "structure",' --max-tokens 96
	$(BIN)/pocketdraft bench $(foreach recipe,mixed f32 w8 w4,$(foreach backend,$(BACKENDS),$(OUT)/$(recipe)/$(backend)))

# Draft lengths on every backend, measured and predicted: build/bench/report.html, and README's graph.
bench: setup
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[bench]'
	for backend in $(BACKENDS); do \
		test -d $(OUT)/mixed/$$backend || $(BIN)/pocketdraft export --backend $$backend --recipe mixed --out $(OUT)/mixed/$$backend; \
	done
	@mkdir -p build/bench
	for backend in $(BACKENDS); do \
		$(BIN)/pocketdraft bench $(OUT)/mixed/$$backend --check --batch 2,4,8 --clock cpu --out build/bench/$$backend.json || exit; \
	done
	$(BIN)/pocketdraft report $(BACKENDS:%=build/bench/%.json) --out build/bench/report.html
	$(BIN)/python benchmarks/draft_length.py $(BACKENDS:%=build/bench/%.json)

# The embedded target with every drafter: build/bench/compare.html, and README's other graph.
compare: setup
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[bench]'
	test -d $(OUT)/every || \
		$(BIN)/pocketdraft export --backend litert --recipe mixed --drafter all --early-exit 3 --out $(OUT)/every
	@mkdir -p build/bench
	$(BIN)/pocketdraft bench $(OUT)/every --compare --lengths 1,2,3,4,6,8 --per-domain 8 --no-parity --out build/bench/every.json
	$(BIN)/pocketdraft report build/bench/every.json --out build/bench/compare.html
	$(BIN)/python benchmarks/compare.py build/bench/every.json

test: setup
	$(BIN)/pytest --numprocesses auto --maxprocesses 4 --dist worksteal

slow: setup
	$(BIN)/pytest -m slow --durations 12

distribution: setup
	$(BIN)/pytest -m distribution

# For Debian and its kin: bundles on an emulated arm64, and on a software GPU. Both are made under build/.
arm64: setup
	tests/arm64/setup.sh
	$(BIN)/pytest -m arm64 -rs

gpu: setup
	tests/gpu/setup.sh
	$(BIN)/pytest -m gpu -rs

# The Android demo, for Debian and its kin; android_demo/README.md says what it takes. No Python packages: no setup.
apk:
	$(PYTHON) -m android_demo.tools.build

android-test:
	$(PYTHON) -m android_demo.tools.jvm test

# What Gradle and Android Studio need beside Maven's repositories.
android-runtimes:
	$(PYTHON) -m android_demo.tools.native

android: setup
	$(BIN)/pytest -m android -rs

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# mypy finds packages by folder, not by pyproject's package-dir: give it the folders under their real names.
types: setup
	@mkdir -p build/types/pocketdraft
	@for package in export quantize runtime; do ln -sfn ../../../$$package build/types/pocketdraft/$$package; done
	MYPYPATH=build/types $(BIN)/mypy --explicit-package-bases -p pocketdraft
	$(BIN)/mypy --explicit-package-bases android_demo/tools

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv build *.egg-info
