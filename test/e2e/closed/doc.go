// Package closed holds the end-to-end suite of closed Services: two sites and
// the cloud, one Service, and nobody is ever answered from elsewhere.
package closed
