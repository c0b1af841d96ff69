#!/usr/bin/env bash
# Installs the Debian packages that building Skerry and running its sandbox need
# on a machine that has Go and root. Says nothing when nothing is missing.
# With ARCH set to another architecture, its cross compiler comes too.
source "$(dirname "$0")/lib.sh"
source "$ROOT/hack/debian.sh"

packages=(
	# compile: runc and pause are C, runc links libseccomp's static library
	gcc libc6-dev make git ca-certificates pkg-config libseccomp-dev
	# machines and links of the sandbox, and what kubeadm's preflight and
	# kube-proxy look for on a node
	iproute2 nftables iptables conntrack ethtool kmod mount procps util-linux
)
if [[ $ARCH != "$HOST_ARCH" ]]; then
	gnu=$(gnu_triplet "$ARCH")
	packages+=("gcc-${gnu//_/-}" "libc6-dev-$ARCH-cross" "libseccomp-dev:$ARCH")
fi

if ! command -v apt-get >/dev/null; then
	die "this is not a Debian system: install what corresponds to these packages, then go on:
  ${packages[*]}"
fi

missing=()
for p in "${packages[@]}"; do
	dpkg-query -W -f='${db:Status-Status}\n' "$p" 2>/dev/null | grep -qx installed || missing+=("$p")
done
[[ ${#missing[@]} -gt 0 ]] || exit 0

[[ $(id -u) == 0 ]] || die "packages are missing: ${missing[*]}; run as root: apt-get install ${missing[*]}"
echo "installing Debian packages: ${missing[*]}"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
try() {
	"$@" >"$log" 2>&1 || { tail -n 20 "$log" >&2; die "\"$*\" failed; its last lines are above"; }
}
export DEBIAN_FRONTEND=noninteractive
if [[ $ARCH != "$HOST_ARCH" ]]; then
	echo "adding the architecture $ARCH to dpkg (undo: dpkg --remove-architecture $ARCH)"
	try dpkg --add-architecture "$ARCH"
fi
try apt-get -q update
try apt-get -q install -y --no-install-recommends "${missing[@]}"
