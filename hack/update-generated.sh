#!/usr/bin/env bash
# Writes again what controller-gen makes from the API types: their deep copies
# and the CustomResourceDefinitions of cluster/crds. Other folders than those of
# the checkout can be given: update-generated.sh API CRDS.
source "$(dirname "$0")/lib.sh"
api=${1:-$ROOT/staging/src/skerry.dev/api}
crds=${2:-$ROOT/cluster/crds}
gen=$OUT/tools/controller-gen
cd "$api"
export GOWORK=off
"$gen" object paths=./...
"$gen" crd:maxDescLen=1000 paths=./... output:crd:dir="$crds"
