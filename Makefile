# Everything runs in .venv, which is made on first use and again when pyproject.toml changes.
PYTHON ?= python3
BIN := .venv/bin
WORKDIR ?= runs/shapes

.PHONY: demo test bench lint clean

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e '.[test]'
	$(BIN)/python -m pip install --quiet --no-deps sgbench==1.0.0  # It asks for NumPy 1, and runs with 2.
	touch $@

# Builds the embedded dataset, trains, evaluates, draws, writes a web page of some test images: about
# thirteen minutes on two cores.
demo: .venv/installed
	$(BIN)/python main.py --config configs/shapes.py --mode train --workdir $(WORKDIR)
	$(BIN)/python main.py --config configs/shapes.py --mode eval --workdir $(WORKDIR) \
		--config.test.pictures=12

test: .venv/installed
	$(BIN)/python -m pytest -n 2 --dist loadfile

# Kernels, stages and whole programs, beside torch and torchvision if they are installed.
bench: .venv/installed
	$(BIN)/python -m benchmarks --json benchmarks.json

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:  # leaves data and runs alone
	rm -rf .venv build *.egg-info .pytest_cache .ruff_cache .hypothesis
