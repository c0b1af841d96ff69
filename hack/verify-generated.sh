#!/usr/bin/env bash
# What controller-gen makes from the API types is what is committed.
source "$(dirname "$0")/lib.sh"
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
cp -r "$ROOT/staging/src/skerry.dev/api" "$tmp/api"
find "$tmp/api" -name 'zz_generated.*' -delete
"$ROOT/hack/update-generated.sh" "$tmp/api" "$tmp/crds"
diff -ru "$ROOT/staging/src/skerry.dev/api" "$tmp/api" && diff -ru "$ROOT/cluster/crds" "$tmp/crds" ||
	die "generated files are not what the API types say: run hack/update-generated.sh"
