# make demo | make kafka | make test | make soak | make lint | make bench | make audit | make clean
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
KAFKA_PORT ?= 9092
KAFKA_LOCKED ?=
AUDIT  := var/audit
AUDIT_SERVICE ?=
SECONDS ?= 2100
ONLY   ?=
BIG    ?=
SEED ?= 0

# hnswlib compiles from source; an image built on one CPU must run on another.
export HNSWLIB_NO_NATIVE = 1

.PHONY: demo kafka test lint types unit soak bench audit docs clean setup
.DEFAULT_GOAL := demo

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "kithstream: installing the pinned packages into $(VENV) (the first time takes minutes: torch is large)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[server,dev]'
	@touch $(READY)

demo: $(READY)
	@$(BIN)/kithstream demo

# A broker without Docker, until Ctrl-C: Java 17, and Maven the first time. Its files are in var/kafka. With
# KAFKA_LOCKED=1 it is behind TLS and a password, in a directory of its own.
kafka: $(READY)
	@exec $(BIN)/python -m kithstream.streams.kafka.local --port $(KAFKA_PORT) \
		$(if $(KAFKA_LOCKED),--locked --data var/kafka/locked)

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

# The performance suite into docs/performance.jsonl and the page of it: everything, or the parts or stages of ONLY. Hours.
bench: $(READY)
	$(BIN)/python -m bench.performance run $(if $(ONLY),--only $(ONLY)) $(if $(BIG),--big)
	$(BIN)/python -m bench.performance page

# Known vulnerabilities of the pinned versions. Needs an advisory service, and fails where it cannot ask one, or one that
# does not know a package: what was not audited is never told to be sound.
audit: $(READY)
	@test -x $(AUDIT)/bin/pip-audit || { $(PYTHON) -m venv $(AUDIT) && $(AUDIT)/bin/pip install --quiet pip-audit; }
	@$(AUDIT)/bin/pip-audit --strict --disable-pip --no-deps --progress-spinner off \
		$(if $(AUDIT_SERVICE),--vulnerability-service $(AUDIT_SERVICE)) --requirement constraints.txt \
		|| { echo "kithstream: not sound, or not audited: the lines above say which"; exit 1; }

docs: $(READY)
	$(BIN)/python -m kithstream.streams.events.schema docs
	$(BIN)/python -m kithstream.streams.manual docs/cli.md
	$(BIN)/python -m bench.performance page

clean:
	rm -rf $(VENV) dist build .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
