// Package conformance runs upstream's own conformance tests, built from the
// pristine Kubernetes module, against a sandbox.
package conformance
