// Package internal has the schema of site.skerry.dev, by which apply configurations
// are extracted from objects.
package internal
