# make demo: install and delete the T-shirt; make test: everything; make docs: site/index.html;
# make check-tpu: docs/scaling.md.
PYTHON ?= python3
REQUIREMENTS ?= requirements.txt
BIN := .venv/bin
WORKDIR ?= runs/siss_mnist

.PHONY: demo test lint docs check-tpu clean

demo: .venv/core
	$(BIN)/python -m jaxunlearn.main --config=configs/siss_mnist.py --workdir=$(WORKDIR)

test: .venv/test lint
	$(BIN)/python -m pytest -n 2 --dist=worksteal

lint: .venv/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: .venv/docs
	$(BIN)/mkdocs build --strict

.venv/core: setup.cfg setup.py $(REQUIREMENTS)
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint $(REQUIREMENTS) --editable .
	touch $@

.venv/test: .venv/core requirements-parity.txt
	$(BIN)/python -m pip install --quiet --requirement $(REQUIREMENTS) --editable .
	$(BIN)/python -m pip install --quiet --no-deps --target .venv/parity --requirement requirements-parity.txt
	touch $@

.venv/docs: requirements-docs.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint requirements.txt --requirement requirements-docs.txt
	touch $@

check-tpu: .venv/core
	$(BIN)/python -m pip install --quiet --constraint $(REQUIREMENTS) --editable .[tpu]
	$(BIN)/python -m benchmarks.check_tpu --out=results
	$(BIN)/python -m benchmarks.sd_memory --out=results

clean:
	rm -rf .venv runs site
