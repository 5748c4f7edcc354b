# Every target does the set-up it needs, once; it is redone when pyproject.toml or the pins change.
# The longer steps are scripts in .make; PYTHON, TORCH_INDEX and NO_SYSTEM_PACKAGES, given on the
# command line or in the environment, reach them by themselves.

VENV := .venv
PY := $(VENV)/bin/python

# What cannot be left to the newest release when the pins are renewed: the torch of the CPU build,
# and type stubs of the pandas that is in use.
HOLD ?= 'torch==2.13.0' 'pandas-stubs<3'

# What `udfs` and the UDF of jobs/evaluation/measures.py import, besides the pyspark that a cluster has
# of its own. `make environment EXECUTOR='... onnxruntime'` is for model.backend: onnxruntime,
# EXECUTOR='pandas pyarrow scipy ir-measures pytrec-eval-terrier httpx' for model.backend: remote.
# An archive that exists is not made anew for that: remove dist/environment.tar.gz first.
EXECUTOR := torch transformers safetensors pandas pyarrow scipy ir-measures pytrec-eval-terrier

# Tests of one file share a Spark session, so a file stays with one process.
TWO := -n 2 --dist loadfile

# Recipes that start Spark begin with this. It is quick when there is a Java, so no stamp keeps it.
WITH_JAVA = JAVA_HOME="$$(sh .make/java.sh $(PY))" && export JAVA_HOME &&

.DEFAULT_GOAL := help
# Two pips at work in one environment would break it.
.NOTPARALLEL:
.PHONY: help setup demo test unit test-slow lint matrix bench gpu zip wheel environment constraints clean

help: ## print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "make %-12s %s\n", $$1, $$2}' Makefile

setup: $(VENV)/.test ## create .venv with all packages; find or install Java
	@$(WITH_JAVA) echo "Java: $$JAVA_HOME"

demo: $(VENV)/.demo ## rerank the embedded sample with the embedded model
	@$(WITH_JAVA) $(PY) -m jobs.demo $(ARGS)

test: setup lint ## lint, then all tests except the slow ones
	@$(WITH_JAVA) $(PY) -m pytest -m 'not slow' $(TWO) $(ARGS)

unit: $(VENV)/.test ## the tests that need neither Java nor Spark
	@$(PY) -m pytest -m 'not slow' tests/unit $(ARGS)

test-slow: setup ## the tests that take minutes
	@$(WITH_JAVA) $(PY) -m pytest -m slow $(ARGS)

lint: $(VENV)/.test ## formatting, style, types
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m mypy --strict jobs udfs

matrix: setup ## the job on other releases of Spark (tests/platforms); ARGS='-e spark35'
	rm -rf build/matrix
	@$(WITH_JAVA) $(PY) -m tests.platforms.run build/matrix
	@$(WITH_JAVA) $(PY) -m tox run-parallel -p 2 --parallel-no-spinner $(ARGS)

bench: setup ## measure the throughput; ARGS='--model.name DIR --input.path IN'
	@$(WITH_JAVA) $(PY) -m tests.benchmark $(ARGS)

# `make gpu PY=python3` on a machine that has torch and transformers of its own sets nothing up.
gpu: $(if $(filter $(VENV)/%,$(PY)),$(VENV)/.test) ## tests and figures of the GPU path; ARGS=--device=cpu tries the kit
	@mkdir -p build
	$(PY) -m pytest tests/gpu
	$(PY) -m tests.benchmark.gpu --json build/gpu.json --markdown build/gpu.md $(ARGS)

zip: $(VENV)/pyvenv.cfg ## dist/spark-rerank-VERSION.zip for spark-submit --py-files
	@$(PY) .make/zip.py

wheel: $(VENV)/pyvenv.cfg ## dist/spark_rerank-VERSION-py3-none-any.whl
	rm -rf build
	$(PY) -m pip wheel -q --no-deps -w dist .

environment: dist/environment.tar.gz ## what executors need, for spark-submit --archives

constraints: ## resolve all packages anew and pin the result in conf/constraints.txt
	sh .make/venv.sh build/constraints
	sh .make/install.sh build/constraints $(HOLD) install-jdk venv-pack -e '.[test]'
	{ sed -n '/^#/p' conf/constraints.txt; \
	  build/constraints/bin/python -m pip freeze --exclude-editable | \
	  sed 's/^\(torch==[^+]*\)+.*/\1/'; } > build/constraints.txt
	mv build/constraints.txt conf/constraints.txt
	rm -rf build/constraints

clean: ## remove what was built and cached, except .venv
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find jobs udfs tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/pyvenv.cfg:
	@sh .make/venv.sh $(VENV)

$(VENV)/.demo: pyproject.toml conf/constraints.txt $(VENV)/pyvenv.cfg
	@sh .make/install.sh $(VENV) -c conf/constraints.txt -e '.[spark]'
	@touch $@

# Made of a fresh environment: that of the tests holds far more, and a link to this folder.
dist/environment.tar.gz: conf/constraints.txt Makefile
	sh .make/venv.sh build/environment
	sh .make/install.sh build/environment -c conf/constraints.txt $(EXECUTOR) venv-pack
	mkdir -p dist
	build/environment/bin/venv-pack -p build/environment -o $@ --force --quiet --compress-level 1
	rm -rf build/environment

# What the tests need includes what the demo needs.
$(VENV)/.test: pyproject.toml conf/constraints.txt $(VENV)/pyvenv.cfg
	@sh .make/install.sh $(VENV) -c conf/constraints.txt -e '.[test]'
	@touch $(VENV)/.demo $@
