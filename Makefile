# make train and make test work from a bare clone: both set up $(VENV) first, which costs seconds once it is there.
VENV ?= .venv
# The Python that $(VENV) is made from. If it has torch and detectron2 already, those are used.
PYTHON ?=
# Another Detectron2: git+https://..., a folder, or "pinned". tools/setup_env.sh says more.
DETECTRON2 ?=
# More arguments: make train ARGS="--eval-only SOLVER.MAX_ITER 10", make test ARGS="-k equalization",
# make prove KILLS=100 ARGS="-k kill"
ARGS ?=
# How often `make prove` kills a training.
KILLS ?= 20
PROOFS = $(addprefix tests/slow/test_,interruptions.py processes_agree.py hostile_files_widely.py)
# Not with ARGS, which may choose a few tests.
COVERAGE = --cov --cov-report=term:skip-covered --cov-fail-under=95

CONFIG ?= configs/MiniLVIS/eql_faster_rcnn.yaml
OUTPUT ?= output/mini_lvis_eql

.DEFAULT_GOAL := help
.PHONY: help setup train test docs prove benchmark benchmark_1203 speed lint clean

help:
	@echo 'make train   set up, then train and evaluate EQL Faster R-CNN on MiniLVIS (about 10 minutes on 2 CPU cores)'
	@echo 'make test    set up, then ruff, mypy and the tests, which must run 95 % of the lines of eql_d2'
	@echo 'make docs    set up, then build the site from docs/, docstrings and config keys into output/site; any warning fails'
	@echo 'make prove   set up, then prove what docs/reliability.md says: kills, full disk, processes, hostile files (about 15 minutes)'
	@echo 'make benchmark   set up, then train every loss on MiniLVIS, for the tables of docs/benchmark.md (hours; resumable)'
	@echo 'make benchmark_1203   set up, then compare methods on 1,203 categories with LVIS, for docs/benchmark_1203.md (hours; resumable)'
	@echo 'make speed   set up, then measure losses, inference, masks, evaluation and start-up (ARGS="--help" says what there is)'
	@echo 'make setup   only make $(VENV) with torch, Detectron2 and eql_d2 in it'
	@echo 'make lint    set up, then ruff (rules and format) and mypy'
	@echo 'make clean   remove caches and build files; $(VENV), output/ and datasets/ stay'
	@echo
	@echo 'PYTHON=/path/to/python3   use the torch and Detectron2 of that environment'
	@echo 'DETECTRON2=git+https://github.com/facebookresearch/detectron2   build that Detectron2'
	@echo 'VENV=folder   another environment; one of your own is added to'
	@echo 'ARGS="..."   more arguments for train_net.py, pytest or the study'

setup:
	@VENV='$(VENV)' PYTHON='$(PYTHON)' DETECTRON2='$(DETECTRON2)' tools/setup_env.sh

# Threads that wait for one another give their core away sooner (docs/speed.md, "A shared machine").
train: setup
	GOMP_SPINCOUNT=$${GOMP_SPINCOUNT:-30000} $(VENV)/bin/python tools/train_net.py --config-file $(CONFIG) $(ARGS) OUTPUT_DIR $(OUTPUT)

lint: setup
	$(VENV)/bin/python -m ruff check .
	$(VENV)/bin/python -m ruff format --check .
	$(VENV)/bin/python -m mypy

# One thread a process: two that share a core are ten times slower.
test: lint
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest tests -n auto $(if $(ARGS),$(ARGS),$(COVERAGE))

docs: setup
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/python -m mkdocs build --strict --config-file website/mkdocs.yml $(ARGS)

prove: setup
	KILLS=$(KILLS) $(VENV)/bin/python -m pytest -m slow -rP $(PROOFS) $(ARGS)

benchmark: setup
	$(VENV)/bin/python -m study $(ARGS)

benchmark_1203: setup
	$(VENV)/bin/python -m study.scale $(ARGS)

speed: setup
	$(VENV)/bin/python -m speed $(ARGS)

clean:
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .coverage .coverage.*
	find . -path './$(VENV)' -prune -o -name __pycache__ -type d -exec rm -rf {} +
