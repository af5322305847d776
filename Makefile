# Everything runs in .venv, which each target makes first. A fresh machine needs Python 3.11+ and make.
PYTHON  ?= python3
OUT     ?= runs/demo
WORKERS ?= 2

VENV   := .venv
BIN    := $(VENV)/bin
EXTRAS := test,lint,docs,demo,bench
STAMP  := $(VENV)/.installed

.PHONY: help install demo test lint docs bench clean

help:
	@echo "make install                         .venv with the package and its extras $(EXTRAS)"
	@echo "make demo [OUT=runs/demo]            tune a model on real data; tables and figures go to OUT"
	@echo "make test                            lint, then all tests"
	@echo "make lint                            ruff and mypy"
	@echo "make docs                            the documentation, in docs/_build/html"
	@echo "make bench NAME=hmc [DATA=dir] [QUICK=1]   one benchmark"
	@echo "make clean                           remove what the tools wrote, except .venv and runs/"
	@echo "PYTHON=python3.11 chooses the interpreter of .venv, WORKERS=8 the test processes."

install: $(STAMP)

# The stamp is written last: an interrupted installation is taken up again.
$(STAMP): setup.cfg pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("probnn needs Python 3.11 or newer, this is %d.%d; try: make install PYTHON=python3.11" % sys.version_info[:2] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt torch==2.13.0
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[$(EXTRAS)]"
	$(BIN)/python -m pip check
	@touch $@

demo: install
	$(BIN)/python -m probnn.optimization.demo --out "$(OUT)"

# One thread a worker, so that the workers do not fight over the cores.
test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

lint: install
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

docs: install
	$(BIN)/sphinx-build -W --keep-going -b html docs docs/_build/html

bench: install
	@test -n "$(NAME)" || { echo "say which: make bench NAME=hmc (a module of benchmarks/)" >&2; exit 2; }
	$(BIN)/python -m benchmarks.$(NAME) $(if $(DATA),--data "$(DATA)") $(if $(QUICK),--quick)

clean:
	rm -rf build dist *.egg-info docs/_build .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +
