# `make run` and `make test` set everything up on a fresh machine with Python 3.11+; the rest is for developers.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RECIPE ?= conf/digits.yaml
ARGS ?=
SECONDS ?= 600
TABLE ?=

.PHONY: help docs numbers run servers test test-all fuzz fuzz-c style quality bench schema architecture clean
.DEFAULT_GOAL := help

help:  ## list these verbs
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt -e ".[torch,fast,flow,s3,dask,onnx,openvino,coreml,litert,dev]"
	$(BIN)/python -m compileall -qq -j 0 $(VENV)/lib || true  # on all cores, unlike pip; some packages hold templates
	@touch $@

run: $(VENV)/.installed  ## set up, then compress: make run [RECIPE=conf/lenet-5.yaml] [ARGS="seed=3"]
	$(BIN)/python -m flows run $(RECIPE) $(ARGS)

servers: $(VENV)/.installed  ## set up, then Prefect's and MLflow's servers on this machine, until Ctrl-C
	$(BIN)/python -m flows servers $(ARGS)

test: $(VENV)/.installed  ## set up, then the tests of every change: make test [ARGS="-k huffman"]
	$(BIN)/python -m pytest -n 2 --dist worksteal $(ARGS)

test-all: $(VENV)/.installed  ## the same and the slow ones: browsers, foreign environments, clusters, servers, fuzzing
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "" --hypothesis-profile searching $(ARGS)

fuzz: $(VENV)/.installed  ## set up, then a million broken files against the decoder: make fuzz [ARGS="--cases 10000"]
	PYTHONPATH=. $(BIN)/python tests/fuzz.py $(ARGS)

fuzz-c: $(VENV)/.installed  ## set up, then the C decoder under libFuzzer and sanitizers: make fuzz-c [SECONDS=600]
	@command -v clang >/dev/null || { echo "fuzz-c needs clang and its runtimes: apt-get install clang"; exit 1; }
	mkdir -p build/fuzz-c/corpus
	PYTHONPATH=. $(BIN)/python tests/fuzz.py --corpus build/fuzz-c/seeds
	clang -g -O2 -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all -Ideepcompression/codec/c \
	    -o build/fuzz-c/fuzz_dcz tests/fuzz_dcz.c
	build/fuzz-c/fuzz_dcz -max_total_time=$(SECONDS) -max_len=4096 -timeout=10 -rss_limit_mb=2048 -print_final_stats=1 \
	    -artifact_prefix=build/fuzz-c/ build/fuzz-c/corpus build/fuzz-c/seeds

style: $(VENV)/.installed  ## format and mend what can be mended
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

quality: $(VENV)/.installed  ## lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(VENV)/.installed  ## speed against rivals in the same process; what wants arguments says so and is left out
	for file in tests/benchmarks/bench_*.py; do echo "== $$file"; $(BIN)/python $$file || [ $$? = 2 ] || exit 1; done

docs: $(VENV)/.installed  ## set up, then the docs as a site, in build/site; every internal link is checked
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[docs]"
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

numbers: $(VENV)/.installed  ## write measured tables of README and docs from docs/numbers: make numbers [TABLE=lenets]
	$(BIN)/python tests/numbers_in_docs.py $(TABLE)

schema: $(VENV)/.installed  ## renew conf/recipe.schema.json from the recipe's types
	$(BIN)/python -m flows schema > conf/recipe.schema.json.part
	mv conf/recipe.schema.json.part conf/recipe.schema.json

architecture: $(VENV)/.installed  ## draw docs/architecture.svg anew from the imports
	$(BIN)/python tests/draw_architecture.py

clean:  ## remove the environment and caches; what runs left in artifacts/ stays
	rm -rf $(VENV) .pytest_cache .hypothesis .mypy_cache .ruff_cache build *.egg-info
