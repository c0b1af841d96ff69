// Package gridapi tests the controller of grids against a real etcd,
// kube-apiserver and kube-controller-manager, without nodes that run anything:
// what a kubelet and its pods would bring about is written into the statuses of
// children by the tests. It needs no sandbox and no root.
//
//	make e2e SUITE=gridapi
package gridapi
