#!/usr/bin/env bash
# What controller-gen makes from the API types is what is committed, and the
# module with both builds without the rest of Skerry, as its users build it.
source "$(dirname "$0")/lib.sh"
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
cp -r "$ROOT/staging/src/skerry.dev/api" "$tmp/api"
"$ROOT/hack/update-generated.sh" "$tmp/api" "$tmp/crds"
diff -ru "$ROOT/staging/src/skerry.dev/api" "$tmp/api" && diff -ru "$ROOT/cluster/crds" "$tmp/crds" ||
	die "generated files are not what the API types say: run hack/update-generated.sh"
cd "$tmp/api"
export GOWORK=off GOARCH=$HOST_ARCH
go mod tidy -diff || die "go.mod or go.sum of skerry.dev/api is not tidy"
go test ./...
