// Package hold is the end-to-end suite of the hold: each row is run with
// Skerry's kube-controller-manager, which must hold, and with upstream's as the
// control, which must evict. Run it with `make e2e SUITE=hold`.
package hold
