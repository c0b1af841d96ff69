#!/usr/bin/env bash
# Do the patched components take exactly upstream's flags, with upstream's
# defaults? Compares --help of ours with that of the unpatched builds; only what
# names the version may differ.
source "$(dirname "$0")/lib.sh"
cd "$ROOT"
[[ $ARCH == "$HOST_ARCH" ]] || die "ARCH is $ARCH, but binaries of this machine ($HOST_ARCH) are needed to run --help"

# help_of BINARY; its own name and version are replaced, as upstream's help
# quotes defaults that hold them.
help_of() {
	COLUMNS=200 timeout 30 "$1" --help 2>&1 | sed "s/${KUBERNETES_VERSION//./\\.}\(+$SKERRY_REVISION\)\{0,1\}/VERSION/g"
}

for component in kubelet kube-proxy kube-controller-manager; do
	ours=$BIN/$component upstreams=$OUT/$ARCH/pristine/$component
	[[ -x $ours ]] || die "$ours is not there: run make build"
	[[ -x $upstreams ]] || die "$upstreams is not there: run make pristine"
	help=$(help_of "$ours")
	flags=$(grep -c '^ *-.*--\|^ *--' <<<"$help") || die "$component --help lists no flag"
	diff -u --label "upstream $component --help" --label "our $component --help" \
		<(help_of "$upstreams") <(printf '%s\n' "$help") ||
		die "$component differs from upstream in its flags (diff above): it must stay a drop-in"
	echo "flags: $component: $flags flags, the same as upstream's"
done
