# gpugrad: `make train` and `make test` set everything up by themselves, in virtual environments of their own.
#
#   make train                      train on real handwritten digits; options through ARGS, as in
#   make train ARGS="--model lenet --data DIR"
#   make test                       the whole test suite; ARGS goes to pytest
#   make nightly                    what takes longer: 2,000 random programs in place of 200
#   make lint type wheel            ruff; mypy --strict; the wheel in dist/
#   make bench                      host cost per operation, every op, and training steps beside what else is installed
#   make docs                       docs/ops anew: the errors of every op on this machine, and a page an op
#   make performance                docs/performance.md anew from bench/results
#   make gpu-check OUT=dir          everything that only a GPU can show, in under 8 minutes, with the Python at hand (no network)
#   make clean                      remove what the above made
#
# PYTHON chooses the interpreter (3.10 or newer). GPU=0 keeps `make train` from adding CuPy where an NVIDIA driver is.

PYTHON ?= python3
ARGS ?=
VENV ?= .venv
BIN := $(VENV)/bin

# The CuPy that the driver can run: CUDA 13 needs driver 580 or newer.
ifneq ($(GPU),0)
DRIVER := $(shell { nvidia-smi --query-gpu=driver_version --format=csv,noheader || cat /proc/driver/nvidia/version; } \
	2>/dev/null | grep -o '[0-9][0-9][0-9]*\.[0-9][0-9.]*' | head -n 1 | cut -d. -f1)
endif
GPU_EXTRA := $(if $(DRIVER),$(shell [ "$(DRIVER)" -ge 580 ] && echo ",cuda13" || echo ",cuda12"))

.PHONY: train test nightly lint type wheel bench docs performance gpu-check clean
.DEFAULT_GOAL := train

train: $(VENV)/train$(GPU_EXTRA).stamp
	$(BIN)/gpugrad train $(ARGS)

test: $(VENV)/test.stamp
	$(BIN)/python -m pytest -n 2 -rs $(ARGS)

nightly: $(VENV)/test.stamp
	GPUGRAD_PROGRAMS=2000 $(BIN)/python -m pytest -n 2 tests/test_random_programs.py

lint: $(VENV)/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

type: $(VENV)/dev.stamp
	$(BIN)/mypy

wheel: $(VENV)/dev.stamp
	rm -rf dist
	$(BIN)/python -m build --wheel --outdir dist .

bench: $(VENV)/bench.stamp
	$(BIN)/python bench/overhead.py
	$(BIN)/python -m pytest bench/ops -q -o python_files='*.py' --benchmark-enable --benchmark-columns=median,iqr,rounds
	$(BIN)/gpugrad bench $(ARGS)

docs: $(VENV)/test.stamp
	$(BIN)/python -m tests.ops.report --measure
	$(BIN)/python -m tests.ops.pages

performance: $(VENV)/bench.stamp
	$(BIN)/gpugrad bench --page docs/performance.md $(patsubst %,--results %,$(sort $(wildcard bench/results/bench-*.json)))

OUT ?= gpu-check
gpu-check:
	$(PYTHON) bench/gpu_check.py --out $(OUT) $(ARGS)

clean:
	rm -rf $(VENV) dist build bench-out .pytest_cache .mypy_cache .ruff_cache .benchmarks

$(VENV)/base.stamp:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "gpugrad needs Python 3.10 or newer; $(PYTHON) is `$(PYTHON) --version 2>&1`. Set PYTHON=..." >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	touch $@

# One stamp for each set of extras. The comma in a name separates extras: train,cuda12.
$(VENV)/train$(GPU_EXTRA).stamp: $(VENV)/base.stamp pyproject.toml
	$(BIN)/python -m pip install --quiet --editable '.[train$(GPU_EXTRA)]'
	touch $@

$(VENV)/test.stamp: $(VENV)/base.stamp pyproject.toml
	$(BIN)/python -m pip install --quiet --editable '.[train,test,kernels]'
	touch $@

$(VENV)/dev.stamp: $(VENV)/test.stamp
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

$(VENV)/bench.stamp: $(VENV)/base.stamp pyproject.toml
	$(BIN)/python -m pip install --quiet --editable '.[bench]'
	touch $@
