# make demo | make kafka | make test | make soak | make lint | make bench | make clean
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
KAFKA_PORT ?= 9092
SECONDS ?= 2100
SEED ?= 0

# hnswlib compiles from source; an image built on one CPU must run on another.
export HNSWLIB_NO_NATIVE = 1

.PHONY: demo kafka test lint types unit soak bench docs clean setup
.DEFAULT_GOAL := demo

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "kithstream: installing the pinned packages into $(VENV) (the first time takes minutes: torch is large)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[server,dev]'
	@touch $(READY)

demo: $(READY)
	@$(BIN)/kithstream demo

# A broker without Docker, until Ctrl-C: Java 17, and Maven the first time. Its files are in var/kafka.
kafka: $(READY)
	@exec $(BIN)/python -m kithstream.streams.kafka.local --port $(KAFKA_PORT)

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports

types: $(READY)
	$(BIN)/mypy

unit: $(READY)
	$(BIN)/python -m pytest -n auto

test: lint types unit

# Rounds of faults on a real Kafka for so many seconds, compared with the log; a table, and var/soak.json.
soak: $(READY)
	PYTHONPATH=.:tests:tests/kafka:tests/faults $(BIN)/python -m soak --seconds $(SECONDS) --seed $(SEED)

bench: $(READY)
	$(BIN)/python -m bench

docs: $(READY)
	$(BIN)/python -m kithstream.streams.events.schema docs
	$(BIN)/python -m kithstream.streams.manual docs/cli.md

clean:
	rm -rf $(VENV) dist build .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
