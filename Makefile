# One command per chore; `make help` lists them. CI calls these and nothing else.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
PIP    := $(BIN)/python -m pip --disable-pip-version-check
# cpu, or gpu on a machine with CUDA: make quickstart FAISS=gpu
FAISS  ?= cpu

# Processes that tests run in, a file of tests in one of them: make test JOBS=4
JOBS   ?= 2

# What the speed benchmarks compare with, each in an environment of its own.
PEERS  := hnswlib usearch milvus infinity

.PHONY: help install quickstart test lint format pytest smoke protos api-docs config-docs bench bench-peers bench-quality audit clean
.DEFAULT_GOAL := help

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

# torch goes first so that nothing else chooses its version; recbole brings MovieLens-100k and is never imported.
$(STAMP): pyproject.toml constraints.txt
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV) (a few minutes the first time)"
	$(PIP) install -q -c constraints.txt torch
	$(PIP) install -q -c constraints.txt -e ".[$(FAISS),train,fast,dev]"
	$(PIP) install -q -c constraints.txt --no-deps recbole
	touch $@

install: $(STAMP) ## Create .venv and install everything

quickstart: $(STAMP) ## Run the main job on real data and show what it recommends
	$(BIN)/adcascade quickstart

test: lint pytest ## Lint, types and tests

lint: $(STAMP) ## ruff, mypy strict, direction of imports, links between the pages
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m benchmarks.links

format: $(STAMP) ## Rewrite the code in the house style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

pytest: $(STAMP) ## Tests alone
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile

smoke: $(STAMP) ## The quickstart, end to end, on a reduced log
	rm -rf .smoke-data
	$(BIN)/adcascade quickstart --smoke --text --data .smoke-data
	rm -rf .smoke-data

bench: $(STAMP) ## Every speed target with the figure reached (hours on two cores; make bench-peers first)
	$(BIN)/adcascade bench all --out docs/speed --document docs/performance.md

bench-peers: $(patsubst %,.peers/%/.installed,$(PEERS)) ## Install what the speed benchmarks compare with

# One that cannot be installed is no reason to do without the others: the benchmarks say that it is missing.
.peers/%/.installed: benchmarks/peers/%.txt
	$(PYTHON) -m venv $(@D)
	$(if $(filter infinity,$*),$(@D)/bin/python -m pip install -q $$(grep ^torch== constraints.txt))
	$(@D)/bin/python -m pip install -q -r $< && touch $@ || echo "not installed: $*"

bench-quality: $(STAMP) ## Every quality target with the figure reached (hours); UPWORTHY=file, IMPRESSIONS=folder, POSTS=file add theirs
	$(BIN)/python -m benchmarks.quality $(if $(UPWORTHY),--upworthy $(UPWORTHY)) $(if $(IMPRESSIONS),--impressions $(IMPRESSIONS)) $(if $(POSTS),--posts $(POSTS))

protos: $(STAMP) ## Regenerate the Python code of the wire contract, and its page
	$(BIN)/python -m grpc_tools.protoc -I protos --python_out=. --grpc_python_out=. --mypy_out=. --mypy_grpc_out=. \
	    --plugin=protoc-gen-mypy=$(BIN)/protoc-gen-mypy --plugin=protoc-gen-mypy_grpc=$(BIN)/protoc-gen-mypy_grpc \
	    $(patsubst protos/%,%,$(wildcard protos/adcascade/v1/*.proto))
	$(MAKE) api-docs

api-docs: $(STAMP) ## Rewrite the reference of docs/api.md from the protos
	$(BIN)/python -m benchmarks.api_docs

config-docs: $(STAMP) ## Rewrite the tables of docs/configuration.md from the settings
	$(BIN)/python -m benchmarks.config_docs

audit: $(STAMP) .audit/.installed ## Hashes of the encoder, bill of materials, known vulnerabilities (asks the network)
	$(BIN)/python -m benchmarks.audit --tools .audit/bin --out dist/sbom.cdx.json

# In an environment of its own, so that what looks is not among what is looked at.
.audit/.installed: pyproject.toml constraints.txt
	test -d $(@D) || $(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip --disable-pip-version-check install -q -c constraints.txt cyclonedx-bom pip-audit
	touch $@

clean: ## Remove the virtual environment and caches
	rm -rf $(VENV) .peers .audit .mypy_cache .ruff_cache .pytest_cache .hypothesis .smoke-data
