# The two commands of the README, and what CI calls. Everything lives in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RECIPE := recipes/smollm2-135m-instruct.toml
# Processes that the tests run in; any number will do, 0 is one without xdist. Tests wait for servers: three keep two cores busy.
JOBS ?= 3
SPREAD := -n $(JOBS) --dist loadfile --no-loadscope-reorder
# Ports of the demo's server, as options of `forge serve`: make demo PORTS="--http-port 9000 --grpc-port 9001 --metrics-port 9002".
PORTS ?=
# Another runtime than the recipe's: make demo RUNTIME=vllm serves by vLLM, on the GPU where there is one.
RUNTIME ?=
export QUESTION ?= What is the capital of France? Answer in one sentence.

.PHONY: demo test test-vllm test-offline coverage torture fuzz originals lint clean

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is wanted, and $(PYTHON) is older: make $(MAKECMDGOALS) PYTHON=python3.12" if sys.version_info < (3, 11) else 0)'
	@echo "forge and what it needs go into $(VENV): a minute or two"
	$(PYTHON) -m venv $(VENV)

$(VENV)/.forge: pyproject.toml $(VENV)/bin/python
	$(BIN)/pip install --quiet --disable-pip-version-check -e .
	touch $@

$(VENV)/.test: pyproject.toml $(VENV)/bin/python
	$(BIN)/pip install --quiet --disable-pip-version-check -e ".[test]"
	touch $@ $(VENV)/.forge

$(VENV)/.lint: pyproject.toml $(VENV)/bin/python
	$(BIN)/pip install --quiet --disable-pip-version-check -e ".[test,lint]"
	touch $@ $(VENV)/.test $(VENV)/.forge

demo: $(VENV)/.forge
	$(BIN)/forge build $(RECIPE) $(if $(RUNTIME),--runtime $(RUNTIME))
	$(BIN)/forge serve --detach $(PORTS)
	@printf "> %s\n" "$$QUESTION"; $(BIN)/forge generate smollm2-135m-instruct "$$QUESTION" --chat --max-tokens 80; \
	  status=$$?; $(BIN)/forge stop; exit $$status

test: $(VENV)/.test
	$(BIN)/python -m pytest $(SPREAD)

# With vLLM itself, on the CPU: it installs 3.4 GB, into FORGE_TEST_HOME where that is set, and takes some minutes.
test-vllm: $(VENV)/.test
	FORGE_TEST_VLLM=1 $(BIN)/python -m pytest $(wildcard tests/vllm/test_vllm_real*.py) tests/serve/test_page_elsewhere.py

# What `forge tune --offline` asks: AIConfigurator itself, 0.75 GB from PyPI.
test-offline: $(VENV)/.test
	FORGE_TEST_OFFLINE=1 $(BIN)/python -m pytest tests/bench/test_tune_offline.py

# The same as `make test`, and how much of each package ran.
coverage: $(VENV)/.test
	$(BIN)/python .ci/coverage.py $(SPREAD)

# Kills at random instants, so many or for so many minutes, or so many rounds of eight builders at once; and every reader of what others write,
# under so many guesses in all (atheris from PyPI).
MINUTES ?= $(if $(KILLS),,10)
KILLS ?=
ROUNDS ?=
CASES ?= 1000000
torture: $(VENV)/.test
	PYTHONPATH=tests/kit $(BIN)/python tests/kit/$(if $(ROUNDS),torture_rounds.py --rounds $(ROUNDS),torture.py $(if $(KILLS),--kills $(KILLS)) $(if $(MINUTES),--minutes $(MINUTES)))

fuzz: $(VENV)/.test
	$(BIN)/pip install --quiet --disable-pip-version-check "atheris>=3"
	PYTHONPATH=tests/kit $(BIN)/python tests/kit/fuzz.py --cases $(CASES)

# NVIDIA's scripts and skeletons, which tests hold forge to; into FORGE_ORIGINALS or ~/.cache/forge/originals.
originals:
	$(PYTHON) tests/kit/originals.py

lint: $(VENV)/.lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pyright
	$(BIN)/lint-imports
	$(BIN)/python .ci/file_sizes.py

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
