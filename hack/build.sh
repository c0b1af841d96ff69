#!/usr/bin/env bash
# Builds Skerry's own binaries and the Kubernetes ones, from the patched tree,
# into _output/$ARCH/bin. Reproducible: nothing of the machine, the folder or
# the time of the build gets into a binary.
source "$(dirname "$0")/lib.sh"
cd "$ROOT"
"$ROOT/hack/kubernetes.sh"

mkdir -p "$BIN"
echo "build: Skerry and Kubernetes binaries for linux/$ARCH (the first time takes about ten minutes on 2 cores)"
go build -ldflags "-s -w $(version_ldflags "$KUBERNETES_VERSION+$SKERRY_REVISION" "$(source_id staging/kubernetes/patches/*.patch)")" -o "$BIN/" \
	./cmd/... \
	k8s.io/kubernetes/cmd/kube-apiserver \
	k8s.io/kubernetes/cmd/kube-scheduler \
	k8s.io/kubernetes/cmd/kubectl
# A CNI plugin is found among the others.
mkdir -p "$OUT/$ARCH/cni"
mv "$BIN/skerry-ipam" "$OUT/$ARCH/cni/"
