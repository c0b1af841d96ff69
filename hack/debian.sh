# Sourced after lib.sh by the scripts that use Debian's tools and packages.
# shellcheck shell=bash

# gnu_triplet ARCH prints the GNU name of a Go architecture: the prefix of its
# cross compiler and the folder of its libraries.
gnu_triplet() {
	case $1 in
	amd64) echo x86_64-linux-gnu ;;
	arm64) echo aarch64-linux-gnu ;;
	*) die "no build for ARCH=$1; architectures: amd64 arm64" ;;
	esac
}

# c_compiler prints the C compiler that makes programs for $ARCH.
c_compiler() {
	local cc=gcc
	[[ $ARCH == "$HOST_ARCH" ]] || cc=$(gnu_triplet "$ARCH")-gcc
	command -v "$cc" >/dev/null || die "the C compiler $cc is missing; run: ARCH=$ARCH hack/deps.sh"
	echo "$cc"
}
