# Every target works in one environment, .venv, which is made on the first call and again only
# when one of the files that define it changes.
PYTHON ?= $(firstword $(foreach name,python3.11 python3.12 python3.13 python3,$(shell command -v $(name) 2>/dev/null)))
VENV := .venv
BIN := $(VENV)/bin
PLUGINS := $(sort $(dir $(wildcard plugins/*/pyproject.toml)))
EXAMPLES := $(sort $(dir $(wildcard examples/*/pyproject.toml)))
EXTRAS := dev
CONSTRAINTS := constraints.txt
DEFINED_BY := pyproject.toml $(CONSTRAINTS) $(addsuffix pyproject.toml,$(PLUGINS) $(EXAMPLES))
READY := $(VENV)/ready
TURBOMIND := .venv-turbomind
VLLM := .venv-vllm
RAY := .venv-ray
LOWEST := .venv-lowest
PACKAGES := build/optional-packages
LOWEST_TOOLS := 'hypothesis>=6.130' 'trustme>=1.2'
VLLM_LISTS := constraints-vllm.txt tests/vllm_engine/requirements.txt
RAY_LISTS := constraints-ray.txt
TURBOMIND_LISTS := constraints-turbomind.txt tests/turbomind/requirements.txt

.DEFAULT_GOAL := help
.PHONY: help check-python setup demo browser test test-all coverage soak test-turbomind test-vllm test-ray gpu-dry-run test-cuda lint types words format \
	test-torchvision fuzz bench bench-lmdeploy bench-vllm bench-ray train-demo evaluate-demo docs build wheels-check clean

help:  ## list the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY)  ## make .venv with everything that the other commands need

check-python:
	@test -n "$(PYTHON)" || { echo "Python 3.11 or later is needed"; exit 1; }
	@$(PYTHON) -c 'import sys; assert (3, 11) <= sys.version_info < (3, 14), sys.version' \
		|| { echo "Python 3.11 to 3.13 is needed: make PYTHON=/path/to/python3.11"; exit 1; }

$(READY): $(DEFINED_BY) | check-python
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint $(CONSTRAINTS) --editable '.[$(EXTRAS)]' \
		$(addprefix --editable ./,$(PLUGINS) $(EXAMPLES))
	@touch $@

demo: $(READY)  ## answer questions about the images in demo/images
	@$(BIN)/python demo/run.py

browser:  ## install the browser of Debian that the tests of the page need, where there is none
	@for name in chromium chromium-browser google-chrome google-chrome-stable; do \
		! command -v $$name || exit 0; done; \
		root=$$(test "$$(id -u)" = 0 || echo sudo); \
		$$root apt-get update && $$root apt-get install --yes --no-install-recommends chromium

# One order of the tests a seed; a test that takes longer than the timeout hangs, and fails.
SEED := 1
PYTEST = $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile \
	--randomly-seed $(SEED) --timeout 900

test: $(READY)  ## run the tests, except the slow ones (make test SEED=2 runs them in another order)
	$(PYTEST) -m "not slow"

test-all: test  ## run the tests, then the slow ones (browser, installations, new processes, load)
	$(PYTEST) -m slow

coverage: $(READY)  ## measure how much of the code make test runs; fails below the floor in pyproject.toml
	$(PYTEST) -m "not slow" --cov --cov-report=term --cov-report=html:build/coverage/html

SECONDS := 60
soak: $(READY)  ## load a real server well and badly and watch it (make soak SECONDS=600)
	$(BIN)/python scripts/soak.py --seconds $(SECONDS)

test-turbomind: $(TURBOMIND)/ready  ## run the tests of TurboMind on lmdeploy's own code, without CUDA (needs gcc)
	$(TURBOMIND)/bin/python -m pytest tests/turbomind

$(TURBOMIND)/ready: $(DEFINED_BY) $(TURBOMIND_LISTS) | check-python
	@command -v gcc >/dev/null || { echo "gcc is needed: it builds stubs of CUDA's libraries"; exit 1; }
	test -x $(TURBOMIND)/bin/python || $(PYTHON) -m venv $(TURBOMIND)
	$(TURBOMIND)/bin/python -m pip install --quiet --constraint constraints.txt pytest --editable . \
		$(addprefix --editable ./,$(PLUGINS))
	$(TURBOMIND)/bin/python -m pip install --quiet --no-deps --constraint constraints-turbomind.txt \
		--requirement tests/turbomind/requirements.txt
	@touch $@

test-torchvision: $(READY) $(PACKAGES)/ready  ## run the tests of transformers' families with the packages that some need, and write docs/families.md
	$(PYTEST) plugins/transformers/tests --optional-packages $(PACKAGES) --families-page

# The packages are not in .venv, where they would decide what other tests find.
$(PACKAGES)/ready: tests/transformers_families/requirements.txt
	rm -rf $(PACKAGES)
	$(BIN)/python -m pip install --quiet --no-deps --target $(PACKAGES) --requirement $<
	@touch $@

VLLM_SELECTION :=
test-vllm: $(VLLM)/ready  ## run the tests of vLLM on a community's build for CPUs (make test-vllm VLLM_SELECTION='-m "not slow"')
	$(VLLM)/bin/python -m pytest tests/vllm_engine $(VLLM_SELECTION)

# vl-plugin-transformers requires a newer transformers than vLLM takes.
$(VLLM)/ready: $(DEFINED_BY) $(VLLM_LISTS) | check-python
	test -x $(VLLM)/bin/python || $(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install --quiet --constraint $(CONSTRAINTS) torch
	$(VLLM)/bin/python -m pip install --quiet --no-deps --requirement tests/vllm_engine/requirements.txt \
		--editable . $(addprefix --editable ./,$(filter-out plugins/transformers/,$(PLUGINS)))
	@touch $@

test-ray: $(RAY)/ready  ## run the tests of clusters on a Ray of their own, on this machine (Linux, some minutes)
	$(RAY)/bin/python -m pytest tests/cluster --ignore tests/cluster/ray_data
	$(RAY)/bin/python -m pytest tests/cluster/ray_data

# constraints-ray.txt has what constraints.txt lacks: Ray and what it alone requires.
$(RAY)/ready: $(DEFINED_BY) $(RAY_LISTS) | check-python
	test -x $(RAY)/bin/python || $(PYTHON) -m venv $(RAY)
	$(RAY)/bin/python -m pip install --quiet --constraint $(CONSTRAINTS) --constraint constraints-ray.txt \
		openai pytest pytest-timeout --editable '.[ray]' $(addprefix --editable ./,$(PLUGINS))
	@touch $@

gpu-dry-run: $(READY)  ## run the steps of scripts/gpu.py with tiny sizes, on whatever device is there
	$(BIN)/python scripts/gpu.py run facts tests encoder graphs embedded turbomind-bench --dry-run

test-lowest: $(LOWEST)/ready  ## run the tests of images, checkpoints and prompts with the lowest versions that are allowed
	$(LOWEST)/bin/python -m pytest tests/media tests/checkpoint tests/prompts

# Everything is as low as pyproject.toml allows, except torch, which is too large to have twice.
$(LOWEST)/ready: pyproject.toml $(CONSTRAINTS) | check-python
	test -x $(LOWEST)/bin/python || $(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet uv
	grep '^torch==' $(CONSTRAINTS) > $(LOWEST)/torch.txt
	$(LOWEST)/bin/uv pip install --quiet --python $(LOWEST)/bin/python --resolution lowest-direct \
		--constraint $(LOWEST)/torch.txt --editable '.[serve,testing,heif,video]' \
		$(addprefix --editable ./,$(PLUGINS) $(EXAMPLES)) $(LOWEST_TOOLS)
	@touch $@

test-cuda: $(READY)  ## run the tests that need a CUDA device
	$(BIN)/python -m pytest -m cuda -rs

lint: $(READY)  ## check style, words and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/lint-imports --no-logo
	$(BIN)/python scripts/check_words.py
	@$(MAKE) --no-print-directory types

types: $(READY)  ## check types
	$(BIN)/mypy --explicit-package-bases vlcore tests
	for plugin in $(PLUGINS) $(EXAMPLES); do $(BIN)/mypy $$plugin || exit 1; done
	$(BIN)/mypy benchmarks/*.py
	$(BIN)/mypy scripts/*.py
	cd demo && ../$(BIN)/mypy --config-file ../pyproject.toml --cache-dir ../.mypy_cache *.py

words: $(READY)  ## list words to replace by standard terms (make words WORDS_IN="vlcore docs" checks only these)
	$(BIN)/python scripts/check_words.py $(WORDS_IN)

format: $(READY)  ## fix style
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench-lmdeploy: $(TURBOMIND)/ready  ## measure lmdeploy's image encoder next to ours, into the same file
	$(TURBOMIND)/bin/python benchmarks/run.py --only lmdeploy_encoder

bench-vllm: $(VLLM)/ready  ## measure vLLM next to the embedded engine, into the same file
	$(VLLM)/bin/python benchmarks/run.py --only vllm_engine

bench-ray: $(RAY)/ready  ## measure a cluster on this machine next to the server, into the same file (some six minutes)
	$(RAY)/bin/python benchmarks/run.py --only cluster

train-demo: $(READY)  ## train the demo model again (an hour and a half on two cores)
	$(BIN)/python demo/train.py

evaluate-demo: $(READY)  ## measure the demo model on images that it has not seen
	$(BIN)/python demo/evaluate.py

bench: $(READY)  ## run every benchmark and write benchmarks/RESULTS.md (some ten minutes)
	$(BIN)/python benchmarks/run.py

docs: $(READY)  ## build the documentation site into build/docs
	$(BIN)/sphinx-build --fail-on-warning --keep-going --quiet --fresh-env --write-all -c docs . build/docs
	@echo "open build/docs/index.html"

build: $(READY)  ## build every wheel into dist
	$(BIN)/python -m build --no-isolation --outdir dist .
	for plugin in $(PLUGINS); do $(BIN)/python -m build --no-isolation --outdir dist $$plugin; done

fuzz: $(READY)  ## try 100,000 damaged images and 10,000 videos: each must be decoded or end in an error of vlcore
	$(BIN)/python scripts/fuzz_images.py
	$(BIN)/python scripts/fuzz_videos.py

wheels-check: $(READY)  ## build every wheel into dist and run the demo from them in a new environment (some minutes)
	$(BIN)/python scripts/check_wheels.py --out dist

clean:  ## remove the environments and everything built
	rm -rf $(VENV) $(TURBOMIND) $(VLLM) $(RAY) $(LOWEST) dist build .pytest_cache .mypy_cache .ruff_cache
