# Every target makes .venv if it is missing and installs what is missing in it. Another Python: make PYTHON=python3.12

PYTHON ?= python3
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help quickstart study calibration test test-slow test-oldest lint docs tensorboard .venv

help: ## this list
	@awk -F ':.*## ' '/^[a-z.-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' Makefile

quickstart: .venv/installed ## train a small transformer on the CPU and look into it, in a few minutes
	$(BIN)/lightning-icl fit --config configs/quickstart.yaml $(if $(wildcard lightning_logs/quickstart),,--run_name quickstart)

study: .venv/installed ## the paper's question at quick scale: many small models, verdicts and a report, in under 20 minutes
	$(BIN)/lightning-icl study --config configs/studies/paper.yaml --scale quick

calibration: .venv/installed ## every instrument on networks whose algorithm is known, PASS or FAIL, in six minutes
	$(BIN)/lightning-icl calibrate

tensorboard: .venv/installed ## show lightning_logs/ in the browser
	$(BIN)/tensorboard --logdir lightning_logs

# One thread a process: the test processes, and the ranks some of them start, share the cores. A file is one process'
# work, so that what its tests share is made once; by their names, since few but long tests would come last by number.
test test-slow test-oldest: export OMP_NUM_THREADS = 1

test: .venv/installed ## the tests, without the slow ones
	$(BIN)/pytest -m "not slow" -n 2 --dist loadfile --no-loadscope-reorder

test-slow: .venv/installed ## the slow tests
	$(BIN)/pytest -m slow -n 2 --dist loadfile --no-loadscope-reorder

test-oldest: .venv-oldest/installed ## the tests with the oldest versions that pyproject.toml allows, in an environment of 7 GB
	.venv-oldest/bin/pytest -m "not slow" -n 2 --dist loadfile --no-loadscope-reorder

lint: .venv/installed ## ruff and mypy
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

# A warning is an error: a link that leads nowhere, a docstring that cannot be read, a cell that fails.
docs: .venv/installed-docs ## the documentation, as a site that begins at docs/_build/html/index.html
	$(BIN)/sphinx-build -q -E -W --keep-going -j auto -b html docs docs/_build/html
	@echo "Open docs/_build/html/index.html in a browser."

.venv: .venv/installed ## the environment alone

.venv/installed: pyproject.toml constraints.txt
	@$(BIN)/pip --version > /dev/null 2>&1 || { $(PYTHON) -c 'import sys; \
		(3, 11) <= sys.version_info < (3, 14) or sys.exit("lightning_icl needs Python 3.11 to 3.13: make PYTHON=python3.12")' \
		&& $(PYTHON) -m venv .venv; }
	@echo "Installing what is missing in .venv; the first time that takes minutes, most of them for torch."
	@$(BIN)/pip install -qq --disable-pip-version-check -c constraints.txt -e '.[dev,study]'
	@touch $@

.venv/installed-docs: .venv/installed
	@$(BIN)/pip install -qq --disable-pip-version-check -c constraints.txt -e '.[docs]'
	@touch $@

.venv-oldest/installed: pyproject.toml constraints-oldest.txt
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/pip install -qq --disable-pip-version-check -c constraints-oldest.txt -e '.[dev,study]'
	@touch $@
