#!/usr/bin/env bash
# Makes the patched Kubernetes tree: the pinned module out of the module cache
# (go.sum proves its bytes), copied to _output/kubernetes, with the series of
# staging/kubernetes/patches applied; then go.work, which makes every plain
# `go build`, `go vet` and `go test` of this checkout use that tree.
# A tree that is already current is left alone. Killed at any point, it leaves
# the old tree or none: the new one is renamed into place when it is whole.
source "$(dirname "$0")/lib.sh"
cd "$ROOT"

PATCHES=$ROOT/staging/kubernetes/patches
TREE=$OUT/kubernetes
STAMP=.skerry-stamp

# apply_patch FILE applies one patch in the current folder. git must not find
# the repository around it (it would skip every file that is not in the index),
# nor follow the user's own configuration.
apply_patch() {
	local name=${1##*/} log
	if ! log=$(GIT_CEILING_DIRECTORIES=$OUT GIT_CONFIG_GLOBAL=/dev/null GIT_CONFIG_NOSYSTEM=1 LC_ALL=C \
		git apply --verbose --whitespace=nowarn "$1" 2>&1); then
		printf '%s\n' "$log" >&2
		die "patch $name does not apply to k8s.io/kubernetes $KUBERNETES_VERSION: make it again against this version, see staging/kubernetes/README.md"
	fi
	if grep -E 'offset|fuzz|[Rr]eject|^Skipped' <<<"$log" >&2; then
		printf '%s\n' "$log" >&2
		die "patch $name applies to k8s.io/kubernetes $KUBERNETES_VERSION only with an offset, fuzz or a skipped file (lines above): make it again against this version"
	fi
}

make_tree() {
	local dir=$1 stamp=$2 new=$OUT/kubernetes.tmp patch
	rm -rf "$new"
	# -a keeps the times, by which the go command knows unchanged files.
	cp -a "$dir" "$new"
	chmod -R u+w "$new"
	while read -r patch; do
		[[ -z $patch || $patch == \#* ]] && continue
		[[ -f $PATCHES/$patch ]] || die "$PATCHES/series names $patch, which is not there"
		(cd "$new" && apply_patch "$PATCHES/$patch")
		echo "kubernetes: applied $patch"
	done <"$PATCHES/series"
	printf '%s\n' "$stamp" >"$new/$STAMP"
	rm -rf "$OUT/kubernetes.old"
	[[ ! -e $TREE ]] || mv "$TREE" "$OUT/kubernetes.old"
	mv "$new" "$TREE"
	rm -rf "$OUT/kubernetes.old"
}

# write_if_changed FILE writes standard input there, in one step, if it differs.
write_if_changed() {
	local tmp=$1.tmp.$$
	cat >"$tmp"
	if cmp -s "$tmp" "$1"; then rm "$tmp"; else mv "$tmp" "$1"; fi
}

mkdir -p "$OUT"
exec 9>"$OUT/.kubernetes.lock"
flock -w 600 9 || die "another hack/kubernetes.sh has held $OUT/.kubernetes.lock for ten minutes"

info=$(GOWORK=off go mod download -json "k8s.io/kubernetes@$KUBERNETES_VERSION") ||
	die "downloading k8s.io/kubernetes@$KUBERNETES_VERSION: $info"
dir=$(sed -n 's/^\t"Dir": "\(.*\)",\{0,1\}$/\1/p' <<<"$info")
sum=$(sed -n 's/^\t"Sum": "\(.*\)",\{0,1\}$/\1/p' <<<"$info")
[[ -d $dir && -n $sum ]] || die "go mod download -json k8s.io/kubernetes@$KUBERNETES_VERSION named no folder and sum: $info"
grep -qxF "k8s.io/kubernetes $KUBERNETES_VERSION $sum" go.sum ||
	die "go.sum does not hold k8s.io/kubernetes $KUBERNETES_VERSION $sum: build/versions.env and go.mod disagree"

# What the tree is made of: the module, the patches, and the way it is made.
shopt -s nullglob
stamp="$sum $(cat "$PATCHES/series" "$PATCHES"/*.patch "$ROOT/hack/kubernetes.sh" | sha256sum | cut -d' ' -f1)"
if [[ $(cat "$TREE/$STAMP" 2>/dev/null) == "$stamp" ]]; then
	echo "kubernetes: $KUBERNETES_VERSION with its patches is current"
else
	make_tree "$dir" "$stamp"
	echo "kubernetes: $KUBERNETES_VERSION with its patches is in ${TREE#"$ROOT"/}"
fi

write_if_changed go.work <<EOT
// Written by hack/kubernetes.sh.
go $(GOWORK=off go list -m -f '{{.GoVersion}}')

use (
	.
	./staging/src/skerry.dev/api
)

replace k8s.io/kubernetes => ./_output/kubernetes
EOT
