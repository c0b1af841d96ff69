#!/usr/bin/env bash
# The go.mod files hold the versions that build/versions.env pins.
source "$(dirname "$0")/lib.sh"
cd "$ROOT"
bad=0
pinned() { # pinned DIR MODULE VERSION
	local got
	got=$(cd "$1" && GOWORK=off go list -m -f '{{.Version}}' "$2")
	[ "$got" = "$3" ] || { echo "$1/go.mod requires $2 $got, build/versions.env pins $3"; bad=1; }
}
pinned . k8s.io/kubernetes "$KUBERNETES_VERSION"
for staging in $(awk '/^replace \(/{r=1;next} /^\)/{r=0} r{print $1}' go.mod); do
	grep -q "^	$staging => $staging $STAGING_VERSION\$" go.mod || { echo "go.mod does not replace $staging by $STAGING_VERSION"; bad=1; }
done
pinned build/containerd github.com/containerd/containerd/v2 "$CONTAINERD_VERSION"
pinned . github.com/containerd/containerd/v2 "$CONTAINERD_VERSION"
pinned build/runc github.com/opencontainers/runc "$RUNC_VERSION"
pinned build/etcd go.etcd.io/etcd/server/v3 "$ETCD_VERSION"
pinned build/cni github.com/containernetworking/plugins "$CNI_PLUGINS_VERSION"
pinned build/coredns github.com/coredns/coredns "$COREDNS_VERSION"
pinned build/images k8s.io/kubernetes "$KUBERNETES_VERSION"
pinned build/tools github.com/golangci/golangci-lint/v2 "$GOLANGCI_LINT_VERSION"
pinned build/codegen sigs.k8s.io/controller-tools "$CONTROLLER_TOOLS_VERSION"
exit $bad
