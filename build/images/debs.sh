#!/usr/bin/env bash
# Downloads Debian packages and everything they depend on, for $ARCH, into
# _output/$ARCH/debs/SET, and writes their file names and digests into
# _output/$ARCH/debs/SET/packages.
#
#   build/images/debs.sh SET PACKAGE...
#
# apt runs with a state of its own and an empty list of installed packages:
# the closure depends on the machine's package sources alone, not on what is
# installed here, and works for another architecture. A set that is there and
# intact is not asked for again, so that a second build needs no network;
# remove its folder to get newer packages.
source "$(dirname "$0")/../../hack/lib.sh"

set=$1
shift
debs=$OUT/$ARCH/debs
dir=$debs/$set

if [[ -f $dir/packages && $(cat "$dir/wanted" 2>/dev/null) == "$*" ]] &&
	(cd "$dir" && sha256sum --quiet --check packages >/dev/null 2>&1); then
	exit 0
fi

command -v apt-get >/dev/null || die "the images' programs come from Debian packages, and this system has no apt-get: build on Debian, or copy a filled $debs here"
echo "downloading Debian packages for $ARCH: $*"
state=$debs/.apt
log=$debs/.apt.log
mkdir -p "$state/lists/partial" "$dir/partial"
: >"$state/status"
apt() {
	apt-get -q -o Dir::State="$state" -o Dir::State::status="$state/status" -o Dir::Cache="$state" \
		-o Dir::Cache::archives="$dir" -o Dir::State::lists="$state/lists" -o APT::Sandbox::User=root \
		-o APT::Architecture="$ARCH" -o APT::Architectures="$ARCH" -o APT::Get::List-Cleanup=false \
		-o Acquire::Retries=3 -o Acquire::Languages=none "$@" >"$log" 2>&1 ||
		{ rm -f "$state/fresh"; tail -n 20 "$log" >&2; die "apt-get could not fetch $set for $ARCH; its last lines are above (the network, or the package sources in /etc/apt)"; }
}
# The index is fetched once for all sets of a run.
[[ -n $(find "$state/fresh" -mmin -60 2>/dev/null) ]] || { apt update; touch "$state/fresh"; }
rm -f "$dir"/*.deb "$dir/packages"
apt install --yes --no-install-recommends --download-only "$@"
rm -rf "$dir/partial" "$dir/lock"
(cd "$dir" && find . -name '*.deb' -printf '%P\n' | LC_ALL=C sort | xargs sha256sum >packages.new)
echo "$*" >"$dir/wanted"
mv "$dir/packages.new" "$dir/packages"
