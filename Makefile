# SageLab. `make` alone lists what there is. Works with GNU make 3.81 (macOS) and newer.
.DEFAULT_GOAL := help
.PHONY: demo test backends lab export sync bench readme clean help
.SUFFIXES:

# Any Python from 3.11 on: the first one that is found, or `make PYTHON=/path/to/python demo`.
ifeq ($(origin PYTHON),undefined)
PYTHON := $(shell for p in python3 python3.13 python3.12 python3.11 python3.14; do \
  $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && { echo $$p; break; }; done)
ifeq ($(PYTHON),)
PYTHON := python3
endif
endif

BIN := .venv/bin
PYTEST ?= $(BIN)/pytest
NOTEBOOK_WORKERS ?= 4

ifeq ($(shell uv --version >/dev/null 2>&1 && echo yes),yes)
INSTALLER := uv
CREATE = uv venv --quiet --python "$(PYTHON)" .venv
INSTALL = uv pip install --quiet --python $(BIN)/python
else
INSTALLER := pip
CREATE = "$(PYTHON)" -m venv .venv
# A .venv that uv made earlier has no pip of its own.
INSTALL = { $(BIN)/python -m pip --version >/dev/null 2>&1 || $(BIN)/python -m ensurepip >/dev/null; } && \
  $(BIN)/python -m pip install --quiet --disable-pip-version-check
endif

$(BIN)/python:
	@command -v "$(PYTHON)" >/dev/null || { echo "No '$(PYTHON)' here. SageLab needs Python 3.11 or newer; try: make PYTHON=/path/to/python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "SageLab needs Python 3.11 or newer, and '$(PYTHON)' is $$("$(PYTHON)" --version 2>&1). Try: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@rm -rf .venv
	@$(CREATE) || { rm -rf .venv; \
	  echo "Could not make .venv. On Debian and Ubuntu: apt-get install python3-venv; or install uv." >&2; exit 1; }

# The stamps are copies of pyproject.toml: nbdev-export touches it, and only another content is a reason to install.
.venv/.installed: pyproject.toml | $(BIN)/python
	@cmp -s pyproject.toml $@ || { echo "Installing SageLab into .venv with $(INSTALLER) ..."; $(INSTALL) -e .; }
	@cp pyproject.toml $@

.venv/.installed-dev: pyproject.toml | $(BIN)/python
	@cmp -s pyproject.toml $@ || { echo "Installing SageLab and its tools into .venv with $(INSTALLER) ..."; $(INSTALL) -e '.[dev]'; }
	@cp pyproject.toml $@
	@cp pyproject.toml .venv/.installed

demo: .venv/.installed ## the main job on the bundled sample: backtest, report, manifest
	$(BIN)/sagelab demo

lab: .venv/.installed ## JupyterLab on this lab
	$(BIN)/sagelab lab

# The tests ask real models. They are fetched before, for tests open no connection to another machine.
MODELS := .sagelab/models/smollm2.json .sagelab/models/minilm.json
$(MODELS): | .venv/.installed-dev
	@$(BIN)/sagelab model add $(basename $(notdir $@)) >/dev/null || echo "The tests that ask $(basename $(notdir $@)) are left out." >&2

# PyTorch without CUDA is a tenth of its size; some installers are told of a folder with such a wheel.
TORCH = $(firstword $(wildcard $(addsuffix /torch-*+cpu*.whl,$(PIP_FIND_LINKS))))

# What was compiled once is kept: llama.cpp takes minutes, and installers forget it.
WHEELS = $(HOME)/.cache/sagelab/wheels
COMPILED = llama-cpp-python>=0.3.16

backends: .venv/.installed-dev ## what `make test` asks when it is there: large libraries, one of them compiled
	@mkdir -p "$(WHEELS)"
	@ls "$(WHEELS)"/llama_cpp_python-*.whl >/dev/null 2>&1 || "$(PYTHON)" -m pip wheel --quiet --no-deps --wheel-dir "$(WHEELS)" '$(COMPILED)' || true
	$(INSTALL) --find-links "$(WHEELS)" $(TORCH) -e '.[dev,transformers,onnx,mlx,llamacpp,prompts]'

test: .venv/.installed-dev $(MODELS) ## every notebook of the book, then tests/
	$(BIN)/nbdev-test --n-workers $(NOTEBOOK_WORKERS) --skip-folder-re '^([_.]|experiments$$|dashboards$$)'
	$(PYTEST)

export: .venv/.installed-dev ## notebooks -> sagelab/, with clean notebook metadata
	$(BIN)/nbdev-export
	$(BIN)/nbdev-clean

sync: .venv/.installed-dev ## carry edits between notebooks and their text pairs, then export
	$(BIN)/python .ci/sync.py
	@$(MAKE) export

readme: .venv/.installed-dev ## README.md from nbs/index.ipynb
	$(BIN)/python .ci/readme.py

bench: .venv/.installed-dev ## side-by-side measurements against peers
	@# Files that end with an exit status are benchmarks; the others are what they share.
	@status=0; for file in $$(grep -lE '^(if __name__ == "__main__": )?sys\.exit' benchmarks/*.py); do \
	  echo "== $$file"; $(BIN)/python "$$file" || status=1; done; exit $$status

clean: ## remove caches and build products; .venv, data, reports and .sagelab stay
	rm -rf dist build htmlcov _proc .pytest_cache .hypothesis .ruff_cache .coverage .coverage.*
	find . -name .venv -prune -o -type d \( -name __pycache__ -o -name .ipynb_checkpoints \) -prune -exec rm -rf {} +

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "  make %-8s %s\n", $$1, $$2}' Makefile
