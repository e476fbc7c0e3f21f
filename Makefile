PYTHON ?= $(shell command -v python || echo python3)
# Extra pytest arguments, for example: make test ARGS="-k packaging"
ARGS ?=

# One thread per worker: two workers with torch's own threads fight over two cores.
# Work stealing keeps a file's tests together (fixtures are built once) and still evens out long files.
PYTEST = OMP_NUM_THREADS=1 $(PYTHON) -m pytest -n 2 --dist worksteal --benchmark-disable

.DEFAULT_GOAL := help
.PHONY: help install lint test test-all test-versions test-vllm mutants op-mutants bench gpu demo docs dist hub-kernel clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-13s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

install: ## Install both packages in editable form with everything the tests need
	$(PYTHON) -m pip install -c constraints-cpu.txt -e '.[test]'

lint: ## Check the code and its layout with ruff, and the engine's types with mypy
	$(PYTHON) -m ruff check .ci setup.py adapt_kernels python benchmarks tests
	$(PYTHON) -m ruff format --check -q .ci setup.py adapt_kernels python benchmarks tests
	$(PYTHON) -m mypy

test: lint ## Lint, then run the tests that README and CI run (20 minutes at most on 2 cores)
	$(PYTEST) -m "not full and not gpu" $(ARGS)

test-all: lint ## Lint, then run every test that needs no GPU, the full matrices too
	$(PYTEST) -m "not gpu" $(ARGS)

test-versions: ## Run the core of the tests on the oldest, the pinned and the newest versions (15 GB of environments)
	PYTHON=$(PYTHON) .ci/versions $(ARGS)

test-vllm: ## Run real vLLM engines on a CPU, in an environment of their own (4 GB, half an hour); VLLM_VENV= names it
	PYTHON=$(PYTHON) VLLM_VENV=$(or $(VLLM_VENV),.versions/vllm) .ci/vllm $(ARGS)

mutants: ## Break adapt_kernels/hf in 100 seeded ways (needs cosmic-ray, an hour or two); lists what no test notices
	OMP_NUM_THREADS=1 $(PYTHON) tests/hf/mutants.py $(ARGS)

op-mutants: ## Break mode_sample's Triton kernels and C++ in known ways (half an hour); lists what no test notices
	OMP_NUM_THREADS=1 $(PYTHON) tests/ops/mode_sample_mutants.py $(ARGS)

bench: ## Measure everything that runs here (about half an hour); results and tables in benchmarks/
	for file in benchmarks/bench_*.py; do name=$${file##*/bench_}; \
	  OMP_NUM_THREADS=1 $(PYTHON) -m pytest -q $$file --benchmark-columns=min,median,rounds \
	    --benchmark-json=benchmarks/results/$${name%.py}_cpu.json $(ARGS) || exit; done
	$(PYTHON) benchmarks/report.py

gpu: ## Check and measure everything on an NVIDIA GPU (10 minutes); ARGS=--dry-run goes through it on a CPU
	PYTHONPATH=$(CURDIR):$(CURDIR)/python$${PYTHONPATH:+:$$PYTHONPATH} $(PYTHON) benchmarks/gpu.py $(if $(DRY_RUN),--dry-run) $(ARGS)
	$(PYTHON) benchmarks/report.py

demo: ## Sweep the bias on the shipped checkpoint: accuracy against thinking cost
	adapt demo

docs: ## Build the API reference from the docstrings into build/docs (extra release); a warning is an error
	$(PYTHON) -W error::UserWarning -W error::RuntimeWarning -m pdoc -o build/docs \
	  adapt_kernels adapt_kernels.trl adapt_recipes

dist: ## Build sdist and wheel (extra release), install each in a new environment and run the demo (2 GB, minutes)
	PYTHON=$(PYTHON) .ci/dist $(ARGS)

hub-kernel: ## Lay the PyTorch and Triton ops out for the Hugging Face kernels hub, in build/hub-kernel
	$(PYTHON) .ci/hub_kernel.py build/hub-kernel

clean: ## Delete build output and tool caches
	rm -rf build dist *.egg-info python/*.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis .benchmarks .versions
	find adapt_kernels python benchmarks tests -name __pycache__ -type d -prune -exec rm -rf {} +
