# `make demo`, `make test` and the rest work on a fresh machine: the first of them builds .venv, the others find it there.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:

VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
# The first of these that is there and is 3.10 or newer.
PYTHONS := $(PYTHON) python3.11 python3.12 python3.13 python3.10 python3 python
WORKERS ?= 2

.PHONY: help setup browser experiments demo test test-all test-hosts lint types docs screenshots wheel-test bench bench-peers gpu clean

help:
	@echo 'make demo        train two networks in float32 and in fp16 under seven strategies, about 3 minutes'
	@echo 'make test        the tests, without the slow ones'
	@echo 'make test-all    all tests'
	@echo 'make test-hosts  the tests of trainers of other packages, in an environment of their own'
	@echo 'make browser     install chromium, if apt-get may, for the tests of the report'
	@echo 'make lint        ruff, check and format'
	@echo 'make types       pyright'
	@echo 'make docs        build the documentation into site/'
	@echo 'make screenshots draw every table and page anew into docs/images, about 10 minutes'
	@echo 'make wheel-test  build the wheel, install it into an empty environment, train with it'
	@echo 'make bench       time one scaler step against torch.amp.GradScaler'
	@echo 'make bench-peers time a half-precision step against DeepSpeed and fairseq'
	@echo 'make experiments  how far each knob can be turned before one scale is not enough: hours; FAST=1: minutes'
	@echo 'make gpu         on a machine with a GPU: its tests and benchmarks, results in build/gpu'
	@echo 'make clean       remove what was built, the virtual environment included'

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	@python=; for candidate in $(PYTHONS); do \
	  if "$$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then \
	    python="$$candidate"; break; fi; done; \
	if [ -z "$$python" ]; then \
	  echo 'No Python 3.10 or newer found. Name one: make PYTHON=/path/to/python' >&2; exit 1; fi; \
	if [ ! -x $(BIN)/python ]; then echo "Building $(VENV) with $$python"; "$$python" -m venv $(VENV); fi
	@echo 'Installing gradscale and what its tests need'
	@$(PIP) install -c constraints.txt torch
	@$(PIP) install -c constraints.txt -e '.[dev,docs]'
	@touch $@

# An ordinary network, on which every strategy is as good as float32, and one on which only layer-wise scaling is.
DEMO := none,torch,static,dynamic,guarded,lognormal,layerwise
demo: $(READY)
	$(BIN)/gradscale compare digits --loss-divisor 1 --policy $(DEMO)
	$(BIN)/gradscale compare towers --policy $(DEMO)

# The report is tested in a real browser. Where it cannot be installed, those tests are skipped and say how to get it.
browser:
	@if { command -v chromium || command -v google-chrome; } >/dev/null && command -v chromedriver >/dev/null; then exit 0; fi; \
	if command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ]; then \
	  echo 'Installing chromium, for the tests of the report'; \
	  { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends \
	    chromium chromium-driver fonts-dejavu-core; } >/dev/null || echo 'Could not install chromium.' >&2; \
	else echo 'No chromium with chromedriver here: the tests of the report in a browser will be skipped.' >&2; fi

test: $(READY) browser
	$(BIN)/python -m pytest -q -n $(WORKERS) -m 'not slow'

test-all: $(READY) browser
	$(BIN)/python -m pytest -q -n $(WORKERS)

# Trainers bring half the world along, so they get an environment of their own; none of them may replace torch.
HOSTS := .venv-hosts
$(HOSTS)/.ready: pyproject.toml constraints.txt | $(READY)
	@if [ ! -x $(HOSTS)/bin/python ]; then $(BIN)/python -m venv $(HOSTS); fi
	@echo 'Installing the trainers that gradscale attaches to'
	@$(HOSTS)/bin/pip install -q -c constraints.txt torch
	@$(HOSTS)/bin/pip install -q -c constraints.txt -e '.[hosts]' ninja setuptools wheel
	@# Megatron-core and fastai ask for packages that would replace torch or break transformers, and run without them.
	@$(HOSTS)/bin/pip install -q -c constraints.txt --no-deps megatron-core fastai fastdownload fasttransform
	@$(HOSTS)/bin/pip install -q -c constraints.txt fastcore fastprogress matplotlib pandas 'plum-dispatch<2.10' requests scikit-learn
	@DS_BUILD_OPS=0 $(HOSTS)/bin/pip install -q -c constraints.txt --no-build-isolation deepspeed
	@# These ask for a torchvision or a torchaudio whose libraries fit no torch for the CPU. They lie in a folder that
	@# only their own tests see, with the Python part of the two, which is all that they need; torchaudio will not do
	@# with a library that it cannot load, but does without. The last three are only read.
	@rm -rf $(HOSTS)/apart
	@$(HOSTS)/bin/pip install -q -c constraints.txt --no-deps --target $(HOSTS)/apart \
	  torchvision torchaudio timm open_clip_torch speechbrain ultralytics nnunetv2 nerfstudio composer
	@rm -f $(HOSTS)/apart/torchaudio/lib/*.so
	@$(HOSTS)/bin/pip install -q -c constraints.txt ftfy hyperpyyaml polars
	@touch $@

test-hosts: $(HOSTS)/.ready
	GRADSCALE_HOSTS=required HF_HUB_OFFLINE=1 KERAS_BACKEND=torch $(HOSTS)/bin/python -m pytest -q -n $(WORKERS) tests/integrations
	GRADSCALE_HOSTS=required KERAS_BACKEND=torch $(HOSTS)/bin/python -m pytest -q tests/test_examples.py -k integrations
	GRADSCALE_HOSTS=required $(HOSTS)/bin/python -m pytest -q tests/experiments -k 'qwen3 or gemma'

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/pyright --pythonpath $(BIN)/python

docs: $(READY)
	$(BIN)/mkdocs build --strict --quiet

# Commands are run and pages opened in a browser; everything on them is real.
screenshots: $(READY) browser
	$(BIN)/python docs/images/screenshots.py

wheel-test: $(READY)
	$(BIN)/python -m pytest -q tests/test_wheel.py

bench: $(READY)
	$(BIN)/python benchmarks/step.py

# Every training that has ended is kept, so a run that is stopped goes on: see experiments/edge/edge.py.
# In the trainers' environment: two tasks are models of transformers.
experiments: $(HOSTS)/.ready
	$(HOSTS)/bin/python experiments/edge/edge.py
	$(HOSTS)/bin/python experiments/edge/edge.py --close
	$(BIN)/python experiments/edge/pages.py
	$(HOSTS)/bin/python experiments/edge/verdicts.py

# DeepSpeed and fairseq pin old packages, so they get an environment of their own.
PEERS := .venv-peers
bench-peers: $(READY)
	@if [ ! -x $(PEERS)/bin/ninja ]; then \
	  $(BIN)/python -m venv $(PEERS); \
	  $(PEERS)/bin/pip install -q -c constraints.txt torch numpy setuptools wheel cython cffi; \
	  $(PEERS)/bin/pip install -q -c constraints.txt bitarray sacrebleu regex tqdm 'omegaconf<2.1' 'hydra-core<1.1'; \
	  READTHEDOCS=1 $(PEERS)/bin/pip install -q -c constraints.txt --no-deps --no-build-isolation fairseq==0.12.2; \
	  DS_BUILD_OPS=0 $(PEERS)/bin/pip install -q -c constraints.txt --no-build-isolation deepspeed; fi
	PATH="$(abspath $(PEERS))/bin:$$PATH" PYTHONPATH=src $(PEERS)/bin/python benchmarks/peers.py --save

# From the tree, with the Python that has torch for CUDA: `make gpu PYTHON=…`.
gpu:
	failed=0; for stage in tests speed cost watching real compiled; do \
	  $(if $(PYTHON),PYTHON='$(PYTHON)') MINUTES=60 benchmarks/on_gpu.sh $$stage || failed=1; done; exit $$failed

clean:
	rm -rf $(VENV) $(PEERS) $(HOSTS) build dist site .pytest_cache .ruff_cache
