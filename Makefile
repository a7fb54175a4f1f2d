# make demo | test | check | zip | figures | bench: each sets up what it needs first. Needs Python 3.11, make and git.
# make gpu: on a machine with an NVIDIA GPU, by the Python there that has PyTorch with CUDA.
PYTHON ?= python3.11
BPY ?= 4.5.15
BPY_PYTHON ?= $(PYTHON)
PLATFORM := $(if $(filter Darwin,$(shell uname -s)),macos,linux-cpu)

VENV := .venv
BPY_VENV := .venv-bpy-$(BPY)
export OMP_WAIT_POLICY := passive
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test test-backend test-blender test-real check zip figures bench gpu

demo: $(VENV)/.ready $(BPY_VENV)/.ready
	GAUSSMITH_PYTHON=$(CURDIR)/$(VENV)/bin/python $(BPY_VENV)/bin/python demo.py --out out

test: test-backend test-blender

test-backend: $(VENV)/.ready
	$(VENV)/bin/python -m pytest tests --ignore=tests/blender

# The networks' tests make some thirty results in one Blender. Its wheels have crashed at that, now and then: then, and
# only then, they run a second time.
BLENDER_TESTS = GAUSSMITH_PYTHON=$(CURDIR)/$(VENV)/bin/python $(BPY_VENV)/bin/python -m pytest
test-blender: $(VENV)/.ready $(BPY_VENV)/.ready
	$(BLENDER_TESTS) tests/blender --ignore=tests/blender/test_networks.py
	$(BLENDER_TESTS) tests/blender/test_networks.py || { test $$? -gt 128 && $(BLENDER_TESTS) tests/blender/test_networks.py; }

# The zip as a user installs it, in real Blenders: ../shared/tools/real-blender. REAL holds options of run.py.
test-real: $(VENV)/.ready $(BPY_VENV)/.ready
	$(VENV)/bin/python tests/blender/real/run.py --out out/real $(REAL)

check: $(VENV)/.ready
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/pyright

zip: $(VENV)/.ready $(BPY_VENV)/.ready
	$(VENV)/bin/python build_addon.py --out dist --check $(BPY_VENV)

# The README's figures of captures with depth; about six minutes.
figures: $(VENV)/.ready $(BPY_VENV)/.ready
	GAUSSMITH_PYTHON=$(CURDIR)/$(VENV)/bin/python $(BPY_VENV)/bin/python tests/blender/figures.py

bench: $(VENV)/.ready
	$(VENV)/bin/python -m backend bench --json out/bench.json

# Tests, bench, training and scores within so many minutes; see gpu_machine.py, whose other options GPU holds.
GPU_PYTHON := $(if $(filter command environment,$(origin PYTHON)),$(PYTHON),python3)
MINUTES ?= 25
OUT ?= out/gpu
gpu:
	$(GPU_PYTHON) gpu_machine.py run --minutes $(MINUTES) --out $(OUT) $(GPU)

# Locked files: a change in one makes the environment again, from the packages already there.
$(VENV)/.ready: backend/requirements/$(PLATFORM).txt backend/requirements/train.txt backend/requirements/dev.txt
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --no-deps -r backend/requirements/$(PLATFORM).txt -r backend/requirements/dev.txt
	touch $@

$(BPY_VENV)/.ready: tests/blender/requirements.txt
	test -x $(BPY_VENV)/bin/python || $(BPY_PYTHON) -m venv $(BPY_VENV)
	$(BPY_VENV)/bin/python -m pip install --quiet bpy==$(BPY) -r tests/blender/requirements.txt
	touch $@
