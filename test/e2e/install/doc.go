// Package install is the end-to-end suite of `skerry init`, `join`, `token`,
// `status` and `reset`, given by hand inside machines as a user would. Run it
// with `make e2e SUITE=install`. The cases have build tag e2e.
package install
