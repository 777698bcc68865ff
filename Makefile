# `make demo` and `make test` need Python 3.11+ and make, nothing else: the virtual environment is set up on first use.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test lint types unit notebooks docs pages bench clean

demo: $(STAMP)
	$(BIN)/gpuplan deploy instances/deploy/demo.yaml -o out/demo.json
	$(BIN)/gpuplan check out/demo.json --instance instances/deploy/demo.yaml
	$(BIN)/gpuplan report out/demo.json --instance instances/deploy/demo.yaml -o out/demo.html
	mkdir -p out/demo
	$(BIN)/gpuplan export out/demo.json --to k8s -o out/demo
	$(BIN)/gpuplan export out/demo.json --to kubectl-sh -o out/demo/apply.sh

test: lint types unit notebooks docs

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

unit: $(STAMP)
	$(BIN)/python -m pytest -n auto --dist worksteal

notebooks: $(STAMP)
	$(BIN)/python -m pytest --nbmake --nbmake-timeout=300 notebooks

# The site, in out/site: it needs no server and no network.
docs: $(STAMP)
	$(BIN)/zensical build --strict --clean --config-file mkdocs.yml

# The pages that are made from the program: after a change of a file format, a help text or the README's accuracy table.
pages: $(STAMP)
	$(BIN)/python docs/tools/pages.py

bench: $(STAMP)
	$(BIN)/python -m benchmarks.experts

clean:
	rm -rf $(VENV) out build dist

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --group dev --group docs --editable '.[dask,parquet,report,xlsx]'
	mkdir -p out
	touch $@
