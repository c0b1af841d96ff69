// Package sandbox holds the cases that prove the sandbox itself: what machines
// keep and lose, what links do to packets, what is left behind. The cases have
// build tag e2e.
package sandbox
