#!/usr/bin/env bash
# Writes go.mod and go.sum anew from what the code imports.
source "$(dirname "$0")/lib.sh"
cd "$ROOT"
GOWORK=off go mod tidy
