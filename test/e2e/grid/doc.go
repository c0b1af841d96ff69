// Package grid is the end-to-end suite of grids: applications of several tiers in
// several sites, followed through roll-outs, faults, and sites that come and go.
// Run it with `make e2e SUITE=grid`. What needs no running pods is in gridapi.
package grid
