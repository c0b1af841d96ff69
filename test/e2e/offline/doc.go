// Package offline is the end-to-end suite of the hub: a node with thirty pods of
// every kind is cut off, restarted and power-cycled, and must go on; a pristine
// node with the same pods is the control, and must not. Run it with
// `make e2e SUITE=offline`.
package offline
