# make book   the whole pipeline on the bundled digits, then the book: _build/html/index.html
# make test   style, every test, the notebooks, and a strict build of the book, looked at in a browser
# make test-fast  the tests that take seconds; make mutation  whether tests notice broken formulas
# make format style as `make test` wants it
# make lab    JupyterLab on the notebooks
# make sweep  a grid of runs: make sweep SWEEP=params/sweeps/digits.yaml
# make bench  speed of each stage against a plain baseline, and what a GPU does if there is one
# make publish  the book as a zip of supplementary material; ANONYMOUS=1 for double-blind review
# Each target first installs what it needs into .venv, from requirements.lock.

PYTHON ?= python3
SWEEP ?= params/sweeps/digits.yaml
BIN := .venv/bin

.PHONY: book test test-fast mutation format lab sweep bench publish clean

.venv/installed: requirements.lock pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

book: .venv/installed
	$(BIN)/elfs run params/digits.yaml --render

test: .venv/installed
	$(BIN)/ruff check --quiet
	$(BIN)/ruff format --check --quiet
	$(BIN)/python -m pytest -m "not book and not large" tests
	$(BIN)/elfs run params/digits.yaml --render
	$(BIN)/python -m pytest --nbval-lax --nbval-sanitize-with tests/nbval.cfg notebooks
	$(BIN)/python -m pytest -m book tests/test_links.py tests/test_browser.py tests/test_executed_pages.py
	@du -sh _build/html

test-fast: .venv/installed
	$(BIN)/python -m pytest -m "not slow and not book" tests

mutation: .venv/installed
	$(BIN)/python tests/mutation_check.py

format: .venv/installed
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

lab: .venv/installed
	$(BIN)/jupyter lab notebooks

sweep: .venv/installed
	$(BIN)/elfs sweep $(SWEEP)

bench: .venv/installed
	$(BIN)/python -m benchmarks --out book/data/bench.json
	$(BIN)/python -m benchmarks.page
	$(BIN)/python -m benchmarks.gpu --if-cuda

publish: book
	$(BIN)/elfs publish $(if $(ANONYMOUS),--anonymous)

clean:
	rm -rf _build _artifacts book/runs/digits .ruff_cache
