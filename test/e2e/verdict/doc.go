// Package verdict is the end-to-end suite of observers, verdict and eviction,
// with default timings: which nodes are called dead and tainted, and when, as
// machines die, links break and parts of Skerry end. Run it with `make e2e
// SUITE=verdict`.
//
// All rows happen in one sandbox with sites of 1, 2, 3 and 5 nodes. The rows of
// a site follow each other, the sites go on side by side; rows that restart
// controllers, or put upstream's in their place, come last and alone.
//
// Every row counts: the time from the fault to the NoExecute taint of each
// machine that has to be found dead, false evictions (taints, deleted or unready
// pods, lost endpoints on any other node of the site) and missed ones.
//
// Not here: the clock of one node off by an hour. The machines of a sandbox
// share the kernel's clock. That row is in test/sim, where the clocks of all
// nodes are hours apart, and in the tests of pkg/cloud/verdict.
package verdict
