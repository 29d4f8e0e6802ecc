# Two commands set up a fresh machine and use it: `make demo` makes a talking video, `make test` runs the tests,
# `make test-long` the campaigns: many kills, much odd input, long videos.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
unexport PYTHONDONTWRITEBYTECODE  # else each process compiles torch and diffusers anew
ON_ALL_CORES := --numprocesses logical --maxprocesses 8 --dist loadgroup

.PHONY: demo demo-two test test-long lint clean

demo: $(VENV)/.demo
	$(BIN)/python -m pipeline --demo --output output/demo.mp4

demo-two: $(VENV)/.demo
	$(BIN)/python -m pipeline --demo-two --output output/demo_two.mp4

test: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/python -m pytest $(ON_ALL_CORES) -m "not long"

test-long: $(VENV)/.test-long
	MULTITALK_FUZZ_EXAMPLES=200 $(BIN)/python -m pytest $(ON_ALL_CORES) -m "long or fuzz" --hypothesis-seed 0

lint: $(VENV)/.test
	$(BIN)/ruff check .

$(VENV)/.demo: requirements.txt requirements-standalone.txt constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --requirement requirements-standalone.txt
	touch $@

$(VENV)/.test: $(VENV)/.demo requirements-dev.txt
	$(BIN)/pip install --quiet --constraint constraints.txt --requirement requirements-dev.txt
	touch $@

$(VENV)/.test-long: $(VENV)/.test requirements-batch.txt
	$(BIN)/pip install --quiet --constraint constraints.txt --requirement requirements-batch.txt
	touch $@

clean:
	rm -rf $(VENV) output
