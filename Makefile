# `make demo` and `make test` do all that is needed on a fresh machine with Python 3.11 or newer.
PYTHON ?= python3
VENV ?= .venv
INSTALLED := $(VENV)/installed

.PHONY: demo test format report

demo: $(INSTALLED)
	$(VENV)/bin/leanthink demo --out demo --overwrite

# One thread for each of two workers: more of them than cores would wait for each other.
test: $(INSTALLED)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	OMP_NUM_THREADS=1 $(VENV)/bin/pytest -n 2 -m "not gpu" -r s

# README's and the docs' tables and the reports of all evaluations, out of the committed results.
report: $(INSTALLED)
	for run in bench/results/eval-*/; do $(VENV)/bin/leanthink compare $$run --overwrite > /dev/null || exit 1; done
	$(VENV)/bin/python bench/table.py

format: $(INSTALLED)
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

$(INSTALLED): pyproject.toml
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --editable ".[dev]"
	command -v chromium || command -v chromium-browser || command -v google-chrome \
		|| $(VENV)/bin/python -m playwright install chromium-headless-shell \
		|| echo "NO BROWSER: the tests of the viewer will be skipped; install chromium to run them"
	touch $@
