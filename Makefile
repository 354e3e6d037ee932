# make up [MODEL=…] [TORCH=cpu|cuda]   sagectld in the foreground with two engines: chat and embed; without
#                                      a MODEL one is trained first, in about a minute
# make up BACKEND=vllm                 the same, served by vLLM (its build for the CPU)
# make vllm-env                        the environment for that, about 4 GB; prints its interpreter
# make test                            every test there is
# make test-fast                       without those that need torch and transformers
# make test-boot                       sagectl on a Debian that systemd boots, in a container; needs root
#                                      (SAGECTL_BOOT_SUITE=trixie for a newer one)
# make test-gpu                        what only a real NVIDIA GPU can show; says so where there is none
#                                      (SAGECTL_CUDA_PYTHON=/path/to/python, one with torch for CUDA)
# make soak [STEPS=6500]               random mishaps for half an hour: a thousand daemons are killed
# make bench                           the benchmarks at full length, with their figures
# make lint                            ruff, mypy, import-linter
# make format                          let ruff rewrite the sources
# make clean                           remove the environments and caches (.sagectl stays: it is yours)
#
# PYTHON chooses the interpreter (3.11 or newer), SAGECTL_ENVS the directory for the big environment,
# ARGS further arguments for pytest.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

RECENT := import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(or $(shell for python in python3 python3.14 python3.13 python3.12 python3.11; do \
	"$$python" -c '$(RECENT)' 2>/dev/null && echo "$$python" && exit; done), \
	$(error sagectl needs Python 3.11 or newer; name one: make PYTHON=/path/to/python3.11))
ENVS = "$(PYTHON)" etc/make/envs.py
MODEL ?=
TORCH ?= auto
BACKEND ?= transformers
STEPS ?= 6500
ARGS ?=

.PHONY: help up vllm-env test test-fast test-boot test-gpu soak bench lint format clean

help:
	@sed -n '/^#/!q; s/^# \{0,1\}//p' Makefile

up:
	@$(ENVS) core >/dev/null; \
	engine=$$($(ENVS) transformers --torch $(TORCH)); \
	if [ "$(BACKEND)" = vllm ]; then llm=$$($(ENVS) vllm); else llm=$$engine; fi; \
	exec .venv/bin/python etc/make/up.py --engine-python "$$llm" --starter-python "$$engine" \
	  --backend "$(BACKEND)" --model "$(MODEL)"

vllm-env:
	@$(ENVS) vllm

test:
	@$(ENVS) dev >/dev/null; \
	engine=$$($(ENVS) transformers --torch $(TORCH)); \
	vllm=$$($(ENVS) vllm); \
	SAGECTL_TRANSFORMERS_PYTHON="$$engine" SAGECTL_VLLM_PYTHON="$$vllm" .venv/bin/python -m pytest $(ARGS)

test-fast:
	@$(ENVS) dev >/dev/null; \
	.venv/bin/python -m pytest -m "not heavy" $(ARGS)

# Without root, debootstrap and systemd-nspawn it says so and succeeds: there is nothing to boot here.
test-boot:
	@$(ENVS) dev >/dev/null; \
	tree=$$("$(PYTHON)" etc/make/boot.py) || { [ $$? = 3 ] && exit 0; exit 1; }; \
	SAGECTL_BOOT_TREE="$$tree" .venv/bin/python -m pytest tests/boot $(ARGS)

test-gpu:
	@$(ENVS) dev >/dev/null; \
	.venv/bin/python -m pytest -s tests/gpu $(ARGS)

soak:
	@$(ENVS) dev >/dev/null; \
	SAGECTL_SOAK=$(STEPS) SAGECTL_CHAOS_SEED=$${SAGECTL_CHAOS_SEED:-$$RANDOM} \
	  .venv/bin/python -m pytest -s tests/acceptance/test_15_chaos.py $(ARGS)

bench:
	@$(ENVS) dev >/dev/null; \
	engine=$$($(ENVS) transformers --torch $(TORCH)); \
	trl=$$($(ENVS) trl --torch $(TORCH)); \
	SAGECTL_TRANSFORMERS_PYTHON="$$engine" SAGECTL_TRL_PYTHON="$$trl" SAGECTL_BENCHMARKS=full .venv/bin/python -m pytest tests/benchmarks $(ARGS)

lint:
	@$(ENVS) dev >/dev/null; set -x; \
	.venv/bin/ruff check .; \
	.venv/bin/ruff format --check .; \
	.venv/bin/mypy; \
	.venv/bin/lint-imports

format:
	@$(ENVS) dev >/dev/null; \
	.venv/bin/ruff check --fix .; \
	.venv/bin/ruff format .

clean:
	rm -rf .venv .envs build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find sagectl plugins tests etc -name __pycache__ -type d -prune -exec rm -rf {} +
