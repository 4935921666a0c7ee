# run · test · lab · labs · docs · bench: each target sets up what it needs, in .venv
PYTHON ?= python3
VENV   ?= .venv
BIN     = $(VENV)/bin
READY   = $(VENV)/.ready
export PIP_DISABLE_PIP_VERSION_CHECK = 1
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)

.PHONY: help setup run test export lab labs docs serve-docs bench bench-gpu lock clean
help:       ## this list
	@grep -hE '^[a-z-]+: .*##|^[a-z-]+:  *##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 14

setup: $(READY) ## create .venv from the lock
$(READY): requirements.lock requirements-nodeps.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("labkit needs Python 3.11 or later; this is %s. Try: make PYTHON=python3.12 …" % sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -r requirements.lock
	$(BIN)/python -m pip install -q --no-deps -r requirements-nodeps.lock
	$(BIN)/python -m pip install -q --no-deps --no-build-isolation -e .
	@touch $(READY)

run: $(READY) ## the whole chain, corpus to agent; prints where the report is
	$(BIN)/labkit chain

test: $(READY) ## export is clean, every lab runs, then pytest
	$(BIN)/python scripts/check_export.py
	$(BIN)/python scripts/run_labs.py --jobs 2
	$(BIN)/python -m pytest

export: $(READY) ## notebooks -> labkit/ and README.md
	$(BIN)/nbdev-export
	$(BIN)/python scripts/make_readme.py

lab: $(READY) ## open JupyterLab on the start page
	JUPYTERLAB_SETTINGS_DIR=$(CURDIR)/.jupyter $(BIN)/jupyter lab $(if $(filter 0,$(shell id -u)),--allow-root) --LabApp.default_url=/lab/tree/nbs/index.ipynb

labs: $(READY) ## every lab cold: seconds, peak memory, checks
	$(BIN)/python scripts/run_labs.py --cold

docs: $(READY) ## the site, in _docs/
	$(BIN)/python scripts/build_docs.py --force

serve-docs: docs ## read the site at http://localhost:8000
	$(BIN)/python -m http.server -d _docs 8000

bench: $(READY) ## every benchmark that needs no GPU, beside the peers
	$(BIN)/python -m pip install -q --no-deps -r requirements-bench.lock
	$(BIN)/python scripts/run_benchmarks.py cpu

bench-gpu: $(READY) ## the benchmarks that need one
	$(BIN)/python scripts/run_benchmarks.py gpu

lock: $(READY) ## pin what .venv has now
	$(BIN)/python scripts/make_lock.py

clean: ## remove what was built; keeps .venv and runs/
	rm -rf _docs _proc .cache build *.egg-info
