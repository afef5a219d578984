# Two commands matter: `make run` (talk to a model through the daemon) and `make test` (the whole suite).
# Everything is installed into .venv; nothing outside the checkout is touched.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip install --quiet --disable-pip-version-check

.PHONY: run test check bench-core bench-monitor bench-overload bench-validation kills chaos clean

run: $(VENV)/.embedded
	@$(VENV)/bin/walled-ctl demo --start

test: $(VENV)/.dev
	@$(PY) -m pytest

check: $(VENV)/.dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(PY) -m pytest

bench-core: $(VENV)/.dev
	@$(PY) -m walled_bench core

bench-monitor: $(VENV)/.dev
	@$(PY) -m walled_bench monitor

bench-overload: $(VENV)/.dev
	@$(PY) -m walled_bench overload

bench-validation: $(VENV)/.dev
	@$(PY) -m walled_bench validation

kills: $(VENV)/.dev
	@$(PY) -m walled_bench kills

# Five minutes of random faults under load. CHAOS_S=60 is shorter, CHAOS_SEED=7 repeats a campaign.
chaos: $(VENV)/.dev
	@$(PY) -m walled_bench chaos

# The stamps make a second run start at once; a changed pyproject.toml installs again.
$(VENV)/.embedded: pyproject.toml | $(VENV)/bin/python
	@echo "installing walled with the embedded engine into $(VENV) ..." >&2
	@$(PIP) --editable '.[embedded]'
	@touch $@

$(VENV)/.dev: pyproject.toml | $(VENV)/bin/python
	@echo "installing walled and what its tests need into $(VENV) ..." >&2
	@$(PIP) --editable '.[dev]'
	@touch $@ $(VENV)/.embedded

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "walled needs Python 3.11 or newer, this is " + sys.version.split()[0] + "; set PYTHON=python3.12 or the like")'
	@$(PYTHON) -m venv $(VENV)

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .hypothesis
