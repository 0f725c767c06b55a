# make demo   the main job on real data; figures and report in out/demo/
# make test   the test suite
# make docs   the documentation as a site, in out/docs/
# make benchmark   measure speed beside other codes; docs/performance.md, some ten minutes
# make gallery   draw the figures of docs/gallery.md again, two minutes
# All set up .venv by themselves and need only make, git and Python 3.11 or newer.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

.PHONY: demo test benchmark gallery lint format clean

demo: $(READY)
	$(BIN)/python -m fusion demo --out out/demo

test: $(READY)
	# One thread a process: more would only wait for each other on matrices this small.
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto

.PHONY: docs
docs: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m sphinx -W --keep-going -q -c docs . out/docs
	@echo "out/docs/index.html"

benchmark: $(READY)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[benchmark]"
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.report --peers

gallery: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m gallery

lint: $(READY)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

format: $(READY)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	$(BIN)/ruff check --fix . && $(BIN)/ruff format .

# Written last, so that an interrupted installation is taken up again.
$(READY): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { \
	  echo "Python 3.11 or newer is needed, and there is no '$(PYTHON)' here." >&2; \
	  echo "Install one and name it:  make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Python 3.11 or newer is needed; '$(PYTHON)' is $$($(PYTHON) --version 2>&1)." >&2; \
	  echo "Install one and name it:  make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' || { \
	  echo "'$(PYTHON)' has no venv module (on Debian and Ubuntu: apt install python3-venv)." >&2; exit 1; }
	@echo "Setting up $(VENV) (the first time this downloads PyTorch, which takes a few minutes) ..."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[test]"
	@touch $(READY)

clean:
	rm -rf $(VENV) out build *.egg-info .pytest_cache .hypothesis .mypy_cache .ruff_cache
