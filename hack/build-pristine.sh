#!/usr/bin/env bash
# Builds the unpatched counterparts of our patched components, the control of
# every end-to-end row and benchmark: same flags, same dependencies, no patch.
source "$(dirname "$0")/lib.sh"
cd "$ROOT"
export GOWORK=off
mkdir -p "$OUT/$ARCH/pristine"
go build -ldflags "-s -w $(version_ldflags "$KUBERNETES_VERSION" "$(source_id)")" -o "$OUT/$ARCH/pristine/" \
	k8s.io/kubernetes/cmd/kube-apiserver \
	k8s.io/kubernetes/cmd/kube-controller-manager \
	k8s.io/kubernetes/cmd/kube-proxy \
	k8s.io/kubernetes/cmd/kube-scheduler \
	k8s.io/kubernetes/cmd/kubelet
