# Each target does its own set-up (lab/bootstrap: host packages, .venv), which costs half a second when there is nothing to do.
# The lab's containers need root: everything that touches them goes through sudo where make itself is not root.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.NOTPARALLEL:

# molecule and ansible-lint look for ansible's programs on PATH. Output is shown as it comes, also in CI.
export PATH := $(CURDIR)/.venv/bin:$(PATH)
export PYTHONUNBUFFERED := 1
# One for all: else each directory in which mypy is called learns the standard library anew.
export MYPY_CACHE_DIR := $(CURDIR)/.mypy_cache
# Named, because ansible ignores an ansible.cfg that it finds by itself in a world-writable checkout.
export ANSIBLE_CONFIG := $(CURDIR)/ansible.cfg

# The pycache prefix keeps root's files out of the caller's .venv and checkout.
AS_ROOT := $(if $(filter 0,$(shell id -u)),,sudo -E -H env PATH="$$PATH" PYTHONPYCACHEPREFIX=/var/cache/ptolemy-pycache)
LAB := $(AS_ROOT) $(CURDIR)/.venv/bin/python lab/lab.py
SCENARIOS ?= default bookworm
# What needs no cluster.
LOCAL_PARTS := lint unit docs client gateway bench
MODULES := $(basename $(notdir $(wildcard library/*.py)))

.PHONY: help
help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo "Variables: LAB_PORT (8080), LAB_SUITE (trixie|bookworm), LAB_OPENWEBUI (yes), LAB_MONITORING (yes), LAB_CLIENT (yes), LAB_MIRROR, LAB_BASE_IMAGE, LAB_LLAMA_SDIST, PTOLEMY_CACHE, SCENARIOS"

.PHONY: bootstrap
bootstrap: ## host packages and .venv
	@lab/bootstrap

.PHONY: lab lab-down lab-status lab-spare-node
lab: bootstrap ## a cluster in containers, provisioned by site.yml, that answers a chat
	@$(LAB) up

lab-down: bootstrap ## remove all that `make lab` made, but not the cache
	@$(LAB) down

lab-status: bootstrap ## the lab's containers, jobs, services, replicas, servers
	@$(LAB) status

lab-spare-node: bootstrap ## one more bare machine beside the lab's, n3: docs/first-lab.md makes it a node
	@$(LAB) spare-node

.PHONY: clean-cache
clean-cache: bootstrap ## forget images, downloads and build caches, so that the next run starts from nothing
	@$(LAB) clean-cache

.PHONY: docs
docs: ## the pages of docs/ and the reference as a site, in site/; a warning is an error
	@python=$$(lab/bootstrap docs) && NO_MKDOCS_2_WARNING=1 "$$python" -m mkdocs build --strict --quiet && echo "site/index.html"

.PHONY: test test-lint test-unit test-client test-docs test-gateway test-bench test-molecule test-protections
test: bootstrap ## everything, as CI runs it: lint, unit, docs, client, gateway, bench beside each other, then molecule
	@started=$$SECONDS; export PTOLEMY_TEST_RUN=$$$$-$$RANDOM; \
	at() { printf '\n==> %s (+%02d:%02d)\n' "$$1" $$(((SECONDS - started) / 60)) $$(((SECONDS - started) % 60)); }; \
	at "beside each other: $(LOCAL_PARTS)"; \
	lab/side-by-side $(foreach part,$(LOCAL_PARTS),$(part) 'exec $(MAKE) --no-print-directory test-$(part)'); \
	at "beside each other: molecule test of $(SCENARIOS)"; \
	$(MAKE) --no-print-directory test-molecule; \
	left=$$(env -u PTOLEMY_TEST_RUN $(AS_ROOT) lab/leftovers $$PTOLEMY_TEST_RUN); \
	if [ -n "$$left" ]; then printf 'left behind by the tests:\n%s\n' "$$left" >&2; exit 1; fi; \
	at "all tests passed, and no container, network, process or directory of theirs is left"

test-lint: bootstrap ## yamllint, ruff, mypy, ansible-lint, the modules' documentation
	yamllint --strict .
	ruff check .
	ruff format --check .
	mypy
	cd lab && mypy --config-file ../pyproject.toml *.py
	cd bench && MYPYPATH=.. mypy --config-file ../pyproject.toml *.py
	cd bench/gateway && MYPYPATH=..:../../tests mypy --config-file ../../pyproject.toml *.py
	cd bench/gpu && MYPYPATH=..:../gateway:../../tests mypy --config-file ../../pyproject.toml *.py
	mypy --package demo
	cd docs/hooks && mypy --config-file ../../pyproject.toml links.py reference.py ../../changelogs/release.py
	mypy roles/monitoring/dashboards/make.py
	venv=$$(client/bootstrap) && cd client && mypy --config-file pyproject.toml --python-executable "$$venv/bin/python"
	ansible-lint --offline
	ansible-doc -t module $(MODULES) >/dev/null

test-unit: bootstrap ## the control plane, without any host (the fast loop)
	pytest tests/unit

test-docs: docs ## the site can be built: pages, links, anchors, the reference

test-client: bootstrap ## the researchers' batch client against a stub gateway, in an environment of its own
	venv=$$(client/bootstrap) && cd client && "$$venv/bin/pytest"

test-gateway: bootstrap ## the control plane and the configuration against a real HAProxy on this machine
	pytest -v tests/gateway

test-bench: bootstrap ## whether the gateway's benchmark still works; its numbers here say nothing
	pytest -v tests/bench

test-protections: bootstrap ## whether each of the gateway's protections has a test that misses it (not in `make test`)
	python tests/protections.py

test-molecule: bootstrap ## site.yml on bare hosts of Debian 13 and 12, then the cluster's tests (SCENARIOS=default for one)
	@$(AS_ROOT) lab/molecule $(SCENARIOS)

.PHONY: test-guide
test-guide: bootstrap ## the commands of docs/first-lab.md, in a lab of their own (minutes; not in `make test`)
	@$(AS_ROOT) $(CURDIR)/.venv/bin/pytest -s tests/guide

.PHONY: test-browser
test-browser: bootstrap ## the status page in a real browser against the lab that is up (needs chromium)
	@$(AS_ROOT) lab/verify tests/browser

.PHONY: test-comfyui
test-comfyui: bootstrap ## the tests of pictures with the real ComfyUI on CPU: COMFYUI_SOURCE=directory, tarball or URL (3 GB of packages)
	@test -n "$(COMFYUI_SOURCE)" || { echo "name its source: make test-comfyui COMFYUI_SOURCE=path-or-url" >&2; exit 1; }
	@export LAB_PREFIX=$${LAB_PREFIX:-ptolemy-comfyui} LAB_PORT=$${LAB_PORT:-18088} LAB_COMFYUI_SOURCE="$(COMFYUI_SOURCE)"; \
	trap '$(LAB) down' EXIT; \
	$(LAB) up && $(AS_ROOT) lab/verify tests/cluster/test_comfyui.py

.PHONY: lock
lock: ## every requirements' .in and the client's, with hashes for every platform, and Open WebUI's and ComfyUI's for x86-64 (needs uv)
	@lock() { uv pip compile --quiet --universal --generate-hashes --upgrade --python-version "$$@"; } && \
	for name in lab/requirements lab/clients lab/docs demo/requirements tests/comfyui_standin/requirements; do lock 3.11 -o $$name.txt $$name.in; done && \
	lock 3.9 --extra build -o client/requirements.txt client/pyproject.toml && \
	lock 3.9 --extra build --extra test -o client/requirements-test.txt client/pyproject.toml && \
	cd roles/openwebui/files && for python in 3.11 3.12; do \
	  uv pip compile --quiet --generate-hashes --upgrade --python-version $$python --python-platform x86_64-manylinux_2_36 \
	    --override left-out.txt -o requirements-$$python.txt requirements.in; \
	done && cd ../../comfyui/files && for python in 3.11 3.12 3.13; do \
	  uv pip compile --quiet --generate-hashes --upgrade --python-version $$python --python-platform x86_64-manylinux_2_36 \
	    -o requirements-$$python.txt requirements.in; \
	done
