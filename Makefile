# Everything sets itself up in .venv; `make test` from a fresh clone needs Python 3.10 or newer with pip, and make.
#
#   make test                    set up if need be, run the tests in two processes of one thread each
#   make fuzz                    damaged files and odd words for minutes: every answer is a result or one sentence
#   make demo                    teach the embedded base a character with OFT and LoRA; prints the reports' paths
#   make lint                    ruff and pyright
#   make mutants                 change one thing in the loop, an objective or a recipe at a time: does a test fail?
#                                (hours for all; one file: ARGS='diffadapt.training.fit*')
#   make bench                   speed and memory beside PEFT (minutes)
#   make evidence DATA=...       run what is missing of the papers' claims, then judge them (hours if all is missing)
#   make clean                   remove .venv and caches; runs/ stays
#
#   PYTHON=python3.12            which Python makes .venv (only when it is made)
#   PIP_ARGS="--index-url ..."   more arguments for pip, such as an index with torch for your GPU
#   PROCESSES=2                  of the tests; 0 runs them in one, as a debugger wants it
#   ARGS="-k lora"               more arguments for pytest, diffadapt demo, the benchmark or evidence run

PYTHON ?= python3
VENV ?= .venv
PIP_ARGS ?=
PROCESSES ?= 2
FUZZ_EXAMPLES ?= 600
ARGS ?=
BIN := $(VENV)/bin
STAMP := $(VENV)/.set-up
PIP_FLAGS = -q --disable-pip-version-check -c constraints.txt $(PIP_ARGS)
SAY := @printf '\n== %s\n'

.PHONY: test fuzz demo lint mutants bench evidence setup clean help
.DEFAULT_GOAL := help

help:
	@sed -n 's/^#  \{0,1\}//p' Makefile

setup: $(STAMP)

# The target is pip and not python: a virtual environment whose making stopped half-way has no pip yet.
$(BIN)/pip:
	$(SAY) "making $(VENV) with $(PYTHON)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "$(PYTHON) is missing or older than 3.10; name another: make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) >/dev/null 2>&1 || { \
		echo "$(PYTHON) -m venv brings no pip (on Debian: apt install python3-venv); trying $(PYTHON) -m pip"; \
		$(PYTHON) -m venv --without-pip $(VENV) && \
		$(PYTHON) -m pip --python $(BIN)/python install -q pip && test -x $@; } || \
		{ echo "$(PYTHON) can make no virtual environment; install its venv module" >&2; exit 1; }

$(STAMP): pyproject.toml constraints.txt | $(BIN)/pip
	$(SAY) "installing torch into $(VENV) (a few minutes the first time)"
	$(BIN)/python -m pip install $(PIP_FLAGS) torch setuptools
	$(SAY) "installing diffadapt and its tools"
	$(BIN)/python -m pip install $(PIP_FLAGS) --no-build-isolation -e '.[dev]'
	@touch $@

test: export PYTHONDONTWRITEBYTECODE :=  # the programs that tests start share what is compiled
test: $(STAMP)
	$(SAY) "tests"
	$(BIN)/python -m pytest --numprocesses $(PROCESSES) --dist worksteal $(ARGS)

fuzz: $(STAMP)
	$(SAY) "fuzz"
	FUZZ_EXAMPLES=$(FUZZ_EXAMPLES) $(BIN)/python -m pytest --numprocesses $(PROCESSES) tests/fuzz $(ARGS)

demo: $(STAMP)
	$(SAY) "demo: teaching the embedded base a character, with OFT and with LoRA (about three minutes on two cores)"
	$(BIN)/diffadapt demo $(ARGS)

lint: $(STAMP)
	$(SAY) "ruff"
	$(BIN)/ruff check .
	$(SAY) "pyright"
	$(BIN)/pyright --venvpath . src

mutants: $(STAMP)
	$(SAY) "mutants"
	OMP_NUM_THREADS=1 $(BIN)/mutmut run --max-children $(PROCESSES) $(ARGS)
	$(BIN)/mutmut results

bench: $(STAMP)
	$(SAY) "benchmarks"
	$(BIN)/python benchmarks/step_time.py $(ARGS)

evidence: $(STAMP)
	$(SAY) "evidence"
	$(BIN)/diffadapt evidence run all $(if $(DATA),--data $(DATA)) $(ARGS)
	$(BIN)/diffadapt evidence report

clean:
	rm -rf .venv .pytest_cache .ruff_cache mutants build dist src/*.egg-info
