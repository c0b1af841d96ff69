#!/usr/bin/env bash
# Builds what is shipped beside Kubernetes: containerd, runc, etcd, CoreDNS and
# the CNI reference plugins, each from its Go module under build/, so that their
# dependencies never mix. Static, stripped, reproducible. An up-to-date target
# takes a second: the Go cache knows.
#
#   hack/build-parts.sh [PART...]     default: all parts, for $ARCH
source "$(dirname "$0")/lib.sh"
source "$ROOT/hack/debian.sh"

# These modules stand alone: the workspace of the patched tree must not reach them.
export GOWORK=off

# part NAME TAGS LDFLAGS: builds every tool directive of build/NAME into $DEST,
# each under the last path element of its package that is not a major version.
part() {
	local name=$1 tags=$2 ldflags=$3 pkg target
	for pkg in $(cd "$ROOT/build/$name" && go list tool); do
		target=$(sed -E 's,/v[0-9]+$,,; s,.*/,,' <<<"$pkg")
		[[ $pkg == */etcd/server/v3 ]] && target=etcd
		go -C "$ROOT/build/$name" build -tags "$tags" -ldflags "-s -w $ldflags" -o "$DEST/$target" "$pkg" ||
			die "building $name ($pkg for $ARCH) failed; the compiler's reason is above"
	done
}

build_containerd() {
	local v=github.com/containerd/containerd/v2/version
	part containerd "netgo osusergo static_build urfave_cli_no_docs" "-X $v.Version=$CONTAINERD_VERSION"
}

# runc needs cgo: its first lines are C, which runs before Go starts threads.
build_runc() {
	local gnu cc
	gnu=$(gnu_triplet "$ARCH")
	cc=$(c_compiler)
	[[ -e /usr/lib/$gnu/libseccomp.a ]] ||
		die "runc needs libseccomp's static library for $ARCH; run: ARCH=$ARCH hack/deps.sh"
	CGO_ENABLED=1 CC=$cc PKG_CONFIG_LIBDIR=/usr/lib/$gnu/pkgconfig \
		part runc "seccomp netgo osusergo urfave_cli_no_docs" "-linkmode external -extldflags -static"
}

build_etcd() {
	part etcd "" "-X go.etcd.io/etcd/api/v3/version.GitSHA=$ETCD_VERSION"
}

build_coredns() {
	part coredns "" "-X github.com/coredns/coredns/coremain.GitCommit=$COREDNS_VERSION"
}

build_cni() {
	local DEST=$OUT/$ARCH/cni
	mkdir -p "$DEST"
	part cni "" "-X github.com/containernetworking/plugins/pkg/utils/buildversion.BuildVersion=$CNI_PLUGINS_VERSION"
}

all=(containerd runc etcd coredns cni)
[[ $# -gt 0 ]] || set -- "${all[@]}"
DEST=$BIN
mkdir -p "$DEST"
for name; do
	declare -F "build_$name" >/dev/null || die "there is no part \"$name\"; parts: ${all[*]}"
	SECONDS=0
	"build_$name"
	echo "built $name for $ARCH (${SECONDS} s)"
done
