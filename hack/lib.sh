# Shared by the scripts of hack/: the root of the checkout, the pinned versions,
# and the one set of build flags. Changing a flag rebuilds every package, so
# they are chosen once, here.
# shellcheck shell=bash
set -euo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
OUT=$ROOT/_output
# shellcheck source=../build/versions.env
source "$ROOT/build/versions.env"

die() { echo "error: $*" >&2; exit 1; }

GO_NEEDED=$(sed -n 's/^go //p' "$ROOT/go.mod")
command -v go >/dev/null ||
	die "Go $GO_NEEDED or newer is needed and not in PATH (with sudo: sudo env PATH=\"\$PATH\" make …)"
GO_FOUND=$(go env GOVERSION)
[[ $(printf '%s\n' "$GO_NEEDED" "${GO_FOUND#go}" | sort -V | head -n 1) == "$GO_NEEDED" ]] ||
	die "Go $GO_NEEDED or newer is needed, this is $GO_FOUND"

HOST_ARCH=$(go env GOHOSTARCH)
ARCH=${ARCH:-$HOST_ARCH}
BIN=$OUT/$ARCH/bin

export GOFLAGS="-trimpath -buildvcs=false" GOTOOLCHAIN=local GOOS=linux GOARCH=$ARCH CGO_ENABLED=0

# source_id FILE... names the source of the Kubernetes binaries: the module, by
# the sum that go.sum proves, and the given patches. It stands where upstream's
# builds have a commit, which a module does not tell.
source_id() { { grep "^k8s.io/kubernetes $KUBERNETES_VERSION h1:" "$ROOT/go.sum" && cat "$@" /dev/null; } | sha1sum | cut -d' ' -f1; }

# version_ldflags GIT_VERSION SOURCE_ID prints the -X flags that upstream's build sets,
# for both packages that hold a version (component-base and client-go).
version_ldflags() {
	local pkg major minor
	IFS=. read -r major minor _ <<<"${KUBERNETES_VERSION#v}"
	for pkg in k8s.io/component-base/version k8s.io/client-go/pkg/version; do
		printf -- '-X %s.gitVersion=%s ' "$pkg" "$1"
		printf -- '-X %s.gitMajor=%s -X %s.gitMinor=%s ' "$pkg" "$major" "$pkg" "$minor"
		printf -- '-X %s.gitCommit=%s ' "$pkg" "$2"
		printf -- '-X %s.gitTreeState=archive -X %s.buildDate=%s ' "$pkg" "$pkg" "$KUBERNETES_BUILD_DATE"
	done
}
