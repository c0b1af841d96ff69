// Package sites tests the controllers of sites and what protects them against a
// real etcd and kube-apiserver, with what `skerry init` installs and the rights
// that it gives: types, admission policies with real node certificates, and
// skerry-controller-manager as two processes of which one leads. Heartbeats and
// reports are written as kubelets and observers write them, with the nodes'
// certificates; the nodes themselves are not there. It needs no sandbox and no
// root.
//
//	make e2e SUITE=sites
package sites
