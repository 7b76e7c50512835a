# Two commands on a fresh machine: `make run` (the main job) and `make test` (everything). The rest is in CONTRIBUTING.md.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: run test check language cluster clean

run: $(VENV)/.run
	$(BIN)/python -m truba_runner cluster=local +experiment=mnist fresh=true

test: $(VENV)/.dev
	tests/run

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	tests/types
	TRUBA_TEST_RECORDS=300 TRUBA_TEST_LINES=500 tests/in_memory -q --numprocesses=auto --dist=loadfile -m 'not programs' tests/unit

# Collects the messages that users read into truba_runner/locale/tr.po, and compiles it; says how many lack their Turkish.
language: $(VENV)/.dev
	PYTHONPATH=. $(BIN)/python tests/catalogues.py

cluster:
	slurm/testcluster/install
	slurm/testcluster/up
	@echo
	@echo 'Three commands to try:'
	@echo "  slurm/testcluster/enter sinfo"
	@echo "  slurm/testcluster/enter --user ayse srun -A ayse -p akya-cuda -c 10 --gres=gpu:1 -t 5 env"
	@echo "  slurm/testcluster/down"

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis

# Debian's Python comes without venv; where that is so, root installs it and others are told.
$(BIN)/python:
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  if [ "$$(id -u)" = 0 ]; then apt-get update -qq && apt-get install -y -qq python3-venv >/dev/null; \
	  else echo 'This Python has no venv: ask root for "apt-get install python3-venv".' >&2; exit 1; fi; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run: pyproject.toml | $(BIN)/python
	$(BIN)/pip install --quiet -e '.[tensorflow,tensorboard]'
	@touch $@

$(VENV)/.dev: pyproject.toml | $(BIN)/python
	$(BIN)/pip install --quiet -e '.[all,dev]'
	@touch $@ $(VENV)/.run
