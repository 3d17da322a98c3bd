# `make demo` and `make test` do all that is needed on a fresh machine with Python 3.11 to 3.13. What they install stands in
# requirements/*.txt with its hashes, and `make lock` makes these anew.
PYTHON ?= python3
VENV ?= .venv
LOCK_VENV ?= .venv-lock
NEWEST_VENV ?= .venv-newest
OLDEST_VENV ?= .venv-oldest
VERL_VENV ?= .venv-verl
VLLM_VENV ?= .venv-vllm
INSTALLED := $(VENV)/installed-test

# Modules are compiled when they are first used, which halves the time of an installation. So what was compiled has to be kept:
# each process that a test starts would else compile torch again.
PIP := -m pip install --quiet --no-compile
unexport PYTHONDONTWRITEBYTECODE

# torch is pinned here, as each of its builds has a hash of its own. Where this index of builds for CPUs does not answer, pip
# takes the build that it finds without it.
TORCH := 2.13.0
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
ANSWERS := import sys, urllib.request; urllib.request.urlopen(sys.argv[1] + "/torch/", timeout=10)
INSTALL_TORCH = $(PIP) $(shell $(PYTHON) -c '$(ANSWERS)' $(TORCH_INDEX) 2> /dev/null \
	&& echo --extra-index-url $(TORCH_INDEX))

# One thread for each of two workers: more of them than cores would wait for each other.
PYTEST := -m pytest -n 2 --dist worksteal -m "not gpu" -r s

.PHONY: demo test checks test-newest test-oldest test-verl test-vllm browser system-browser lock report format

demo: $(VENV)/installed-demo
	$(VENV)/bin/leanthink demo --out demo --overwrite

# apt fetches a browser while pip fetches packages.
test:
	$(MAKE) --no-print-directory --jobs=2 checks browser
	OMP_NUM_THREADS=1 $(VENV)/bin/python $(PYTEST)

checks: $(INSTALLED)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

# The newest of everything that the ranges in pyproject.toml allow today.
test-newest: browser
	test -x $(NEWEST_VENV)/bin/python || $(PYTHON) -m venv $(NEWEST_VENV)
	$(NEWEST_VENV)/bin/python $(INSTALL_TORCH) "torch==$(TORCH)"
	$(NEWEST_VENV)/bin/python -m pip install --quiet --upgrade --upgrade-strategy eager --editable ".[dev]"
	OMP_NUM_THREADS=1 $(NEWEST_VENV)/bin/python $(PYTEST)

# The oldest of everything that pyproject.toml names; what these need in turn is as new as they allow.
test-oldest: $(OLDEST_VENV)/installed browser
	OMP_NUM_THREADS=1 $(OLDEST_VENV)/bin/python $(PYTEST)

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
	$(VENV)/bin/python bench/real_plot.py

format: $(INSTALLED)
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

# Both in one environment: what `make demo` installs is a part of what `make test` does.
$(VENV)/installed-%: requirements/%.txt requirements/demo.txt pyproject.toml
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python $(PIP) --no-deps --require-hashes -r $<
	$(VENV)/bin/python $(INSTALL_TORCH) "torch==$(TORCH)"
	$(VENV)/bin/python $(PIP) --no-deps --no-build-isolation --editable .
	touch $@

# One for the tests of the viewer: one that is here, else Debian's, else playwright's own.
FIND_BROWSER := command -v chromium || command -v chromium-browser || command -v google-chrome
system-browser:
	@$(FIND_BROWSER) > /dev/null || test "$$(id -u)" != 0 \
		|| { apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq --yes install chromium; } > /dev/null 2>&1 || true

browser: system-browser $(INSTALLED)
	@$(FIND_BROWSER) \
		|| $(VENV)/bin/python -m playwright install chromium-headless-shell > /dev/null 2>&1 \
		|| echo "NO BROWSER: the tests of the viewer will be skipped; install chromium to run them"

UV := $(LOCK_VENV)/bin/uv --quiet --config-file requirements/uv.toml
EXPORT := $(UV) export --project requirements --frozen --no-annotate --no-header --no-emit-local --no-emit-package torch

# What the markers of all packages say, as it is all that is locked for.
EVERYWHERE := python_full_version < '3.14' and ((platform_machine == 'aarch64' and sys_platform == 'linux') \
	or (platform_machine == 'x86_64' and sys_platform == 'linux'))

lock: $(LOCK_VENV)/bin/uv
	$(UV) lock --project requirements --upgrade --upgrade-package "torch==$(TORCH)"
	$(EXPORT) --only-group demo > requirements/demo.txt
	echo "-r demo.txt" > requirements/test.txt
	$(EXPORT) --only-group test $$(sed -n 's/^\([^ =]*\)==.*/--no-emit-package \1/p' requirements/demo.txt) >> requirements/test.txt
	sed -i "s/ ; $(EVERYWHERE)//" requirements/demo.txt requirements/test.txt
	$(LOCK_VENV)/bin/python requirements/trim.py requirements/uv.lock requirements/demo.txt requirements/test.txt

$(LOCK_VENV)/bin/uv:
	$(PYTHON) -m venv $(LOCK_VENV)
	$(LOCK_VENV)/bin/python -m pip install --quiet "uv>=0.8"

$(OLDEST_VENV)/installed: pyproject.toml $(LOCK_VENV)/bin/uv
	test -x $(OLDEST_VENV)/bin/python || $(PYTHON) -m venv $(OLDEST_VENV)
	$(UV) pip compile --python $(OLDEST_VENV)/bin/python --resolution lowest-direct --extra dev pyproject.toml --output-file $(OLDEST_VENV)/oldest.txt
	$(OLDEST_VENV)/bin/python $(INSTALL_TORCH) "$$(grep ^torch== $(OLDEST_VENV)/oldest.txt)"
	$(OLDEST_VENV)/bin/python -m pip install --quiet -r $(OLDEST_VENV)/oldest.txt
	$(OLDEST_VENV)/bin/python -m pip install --quiet --no-deps --editable .
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
