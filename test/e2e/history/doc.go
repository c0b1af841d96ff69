// Package history is the model-checked history test of skerry-agent: a real etcd
// and kube-apiserver, one agent behind a link that is cut and black-holed,
// clients that list, watch and resume through its hub, a kubelet's statuses, and
// random operations in the cloud, with kill -9 of the agent, restarts and
// compactions in between. After each round the link heals, and within ten
// seconds the store, what every client has replayed and etcd must be the same,
// with nothing lost and nothing resurrected; no client may ever see a
// resourceVersion go back, in a list, an event or a bookmark, nor one object
// turn into another of the same name. At the end the cloud is restored from a
// backup: then they go back once, in a list. It needs no sandbox and no root.
//
//	make e2e SUITE=history
//	PATH=$PWD/_output/amd64/bin:$PATH go test -tags e2e -v ./test/e2e/history -args -history.rounds=100 -history.seed=7
//
// The seed repeats the choices, not the timing of the processes.
package history
