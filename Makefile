.DEFAULT_GOAL := help
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: help setup train test verify lint dashboard reproduce lessons speed defaults mutation

help:  ## list these targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 12

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

setup: $(BIN)/python  ## make .venv and install everything, development tools included
	$(BIN)/pip install -r requirements-dev.txt

train:  ## train the digit network by hand-written backpropagation
	$(BIN)/python train.py --impl manual

test:  ## run all tests, those too that a plain pytest leaves out
	$(BIN)/python -m pytest -m ""

verify:  ## compare every gradient and δ with autograd's (minutes) and write the README's table of largest errors
	$(BIN)/python -m benchmarks.verification

lint:  ## check style, types, and the arrows between rooms
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

dashboard:  ## show all runs in TensorBoard
	$(BIN)/tensorboard --logdir runs

reproduce:  ## train what has published figures (five seeds each, hours, goes on where it was), write docs/reproduction.md
	$(BIN)/python -m benchmarks.reproduction

lessons:  ## run all lessons (minutes) and write docs/lessons.md
	$(BIN)/python -m benchmarks.lessons

speed:  ## time a training step again and write the README's table
	$(BIN)/python -m benchmarks.speed

defaults:  ## train with every combination of optimizer, cost and activation (half an hour), write docs/defaults.md
	$(BIN)/python -m benchmarks.defaults

mutation:  ## break the mathematics in every small way, see whether the tests notice (20 minutes), write docs/mutation.md
	$(BIN)/python -m benchmarks.mutation
