#!/usr/bin/env bash
# Writes the container images as OCI archives, without Docker, a registry or the
# network (once the Debian packages are there): _output/$ARCH/images/*.tar.
# What has not changed is not written again.
#
#   hack/build-images.sh [--test]
#
# --test adds the images of end-to-end tests, in _output/$ARCH/images/test.
source "$(dirname "$0")/lib.sh"
source "$ROOT/hack/debian.sh"

# The unpatched source of Kubernetes, from the module cache.
export GOWORK=off

tests=false
case "${1:-}" in
"") ;;
--test) tests=true ;;
*) die "usage: hack/build-images.sh [--test]" ;;
esac

for program in kube-apiserver kube-controller-manager kube-scheduler kube-proxy skerry-controller-manager etcd etcdctl coredns; do
	[[ -x $BIN/$program ]] || die "$BIN/$program is missing; run: make build ARCH=$ARCH"
done

parts=$OUT/$ARCH/parts
mkdir -p "$parts" "$OUT/$ARCH/test" "$OUT/$HOST_ARCH/parts"
module=$ROOT/build/images
source=$(cd "$module" && go mod download k8s.io/kubernetes && go list -m -f '{{.Dir}}' k8s.io/kubernetes)

# pause is the one program of Kubernetes in C. Every flag is there for the same
# bytes on every machine, or to make it small.
"$(c_compiler)" -Os -Wall -Werror -static -s -Wl,--build-id=none -ffile-prefix-map="$source=." \
	-DVERSION="$KUBERNETES_VERSION" -o "$parts/pause" "$source/build/pause/linux/pause.c"
go -C "$module" build -ldflags "-s -w" -o "$parts/kube-log-runner" k8s.io/component-base/logs/kube-log-runner

"$module/debs.sh" product nftables iptables ipset netbase ca-certificates
flags=()
if $tests; then
	flags+=(-test)
	"$module/debs.sh" test bash-static busybox-static netbase libc-bin curl netcat-openbsd bind9-dnsutils \
		bind9-host iproute2 iperf socat nginx-light
	version=$(<"$source/test/images/agnhost/VERSION")
	(cd "$ROOT" && go build -ldflags "-s -w -X main.Version=$version" -o "$OUT/$ARCH/test/agnhost" k8s.io/kubernetes/test/images/agnhost)
fi

# The program runs here, whatever the images are for.
GOARCH=$HOST_ARCH go -C "$module" build -o "$OUT/$HOST_ARCH/parts/images" .
"$OUT/$HOST_ARCH/parts/images" -out "$OUT/$ARCH" -arch "$ARCH" -source "$source" \
	-kubernetes "$KUBERNETES_VERSION+$SKERRY_REVISION" -upstream "$KUBERNETES_VERSION" "${flags[@]}"
