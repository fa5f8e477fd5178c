# Every target sets up what it needs in .venv first; only Python 3.11 or 3.12 and pip have to be there.
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3)
BIN := .venv/bin
export RAY_USAGE_STATS_ENABLED := 0

.PHONY: demo test lint format bench soak clean
demo: .venv/ready ## parse sample documents with the embedded model and show the result
	$(BIN)/python -m jobs.demo demo-output

test: .venv/ready ## run the tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder  # tiny networks: one thread each

lint: .venv/ready ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: .venv/ready ## the engine beside transformers.generate on the same pages
	$(BIN)/python -m jobs.bench engine

.venv/ready: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check ".[dev]"
	touch $@

soak: .venv/ready ## kill whatever can die while jobs run, 200 times, and compare the tables
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.soak --kills 200

clean:
	rm -rf .venv demo-output
