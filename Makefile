# Skerry: `make help` lists what can be made. Everything a target leaves behind
# is under _output/, or goes with `make down`.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := build

ARCH ?= $(shell go env GOHOSTARCH)
# Which end-to-end suite to run, and which of its cases (a regular expression).
SUITE ?=
RUN ?=
# Which conformance tests to run (a regular expression over their names).
FOCUS ?=
# Which fuzz targets to run (a regular expression over PACKAGE.Target).
FUZZ ?=
# Regular expressions go through as they are: make must not expand their $.
export ARCH
override export SUITE := $(value SUITE)
override export RUN := $(value RUN)
override export FOCUS := $(value FOCUS)
override export FUZZ := $(value FUZZ)

##@ Main

.PHONY: up
up: preflight build images ## Build everything, start a cloud and two sites here, and show a site going on without its cloud
	hack/up.sh

.PHONY: down
down: ## Remove every sandbox and every trace of it
	hack/down.sh

.PHONY: test
test: test-images ## Unit tests, upstream's tests of the patched packages, and the chosen end-to-end suites
	hack/test.sh

##@ Build

.PHONY: deps
deps: ## Install the Debian packages that building and running need
	hack/deps.sh

.PHONY: kubernetes
kubernetes: ## Make the patched Kubernetes tree in _output/kubernetes
	hack/kubernetes.sh

.PHONY: build
build: deps ## Build all binaries into _output/$(ARCH)/bin (ARCH=arm64 cross-builds)
	hack/build.sh
	hack/build-parts.sh

.PHONY: pristine
pristine: ## Build the unpatched Kubernetes components, the control of tests and benchmarks
	hack/build-pristine.sh

.PHONY: images
images: build ## Write the container images as OCI archives, for the product, the examples and tests
	hack/build-images.sh --test

# Pristine components are images too, for the controls of tests and benchmarks.
.PHONY: test-images
test-images: build pristine
	hack/build-images.sh --test

.PHONY: preflight
preflight:
	hack/preflight.sh

##@ Check

.PHONY: verify
verify: ## Format, vet, lint, patches, generated files, dependency rules, docs links (seconds, once its tools are built)
	hack/verify.sh

.PHONY: update
update: ## Write again what is generated
	hack/update.sh

.PHONY: e2e
e2e: test-images ## Run one end-to-end suite: make e2e SUITE=hold [RUN=regexp]
	hack/e2e.sh

.PHONY: conformance
conformance: images ## Run upstream's conformance tests: make conformance FOCUS='\[sig-node\] Pods.*\[Conformance\]'
	hack/conformance.sh

.PHONY: fuzz
fuzz: kubernetes ## Fuzz every decoder and parser, each for FUZZTIME=5m (FUZZ=regexp narrows it)
	hack/fuzz.sh

.PHONY: torture
torture: kubernetes ## Crash, flip and fill the edge's store, ROUNDS=300 times each way (SEED=n repeats a run)
	hack/torture.sh

.PHONY: reproducible
reproducible: ## Build HEAD again in another folder and compare all bytes (COLD=1: with an empty Go cache)
	hack/verify-reproducible.sh

.PHONY: bench
bench: test-images ## Measure against upstream in the same run: tables, and JSON under _output/bench
	hack/bench.sh

##@ Other

.PHONY: release
release: images ## Pack binaries, CNI plugins and images into _output/release, with checksums
	hack/release.sh

.PHONY: clean
clean: down ## Remove _output
	chmod -R u+w _output 2>/dev/null || true
	rm -rf _output go.work go.work.sum

.PHONY: help
help: ## Show this help
	@awk 'BEGIN {FS = ":.*## "} \
		/^##@/ {printf "\n%s\n", substr($$0, 5)} \
		/^[a-z0-9-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
