#!/usr/bin/env bash
# Builds the repository's tools at their pinned versions, for this machine, into
# _output/tools. The first time takes minutes; after that Go's cache knows.
source "$(dirname "$0")/lib.sh"

export GOWORK=off GOARCH=$HOST_ARCH
mkdir -p "$OUT/tools"
go -C "$ROOT/build/tools" build -ldflags "-s -w -X main.version=${GOLANGCI_LINT_VERSION#v}" \
	-o "$OUT/tools/golangci-lint" github.com/golangci/golangci-lint/v2/cmd/golangci-lint
go -C "$ROOT/build/codegen" build -ldflags "-s -w" \
	-o "$OUT/tools/controller-gen" sigs.k8s.io/controller-tools/cmd/controller-gen
