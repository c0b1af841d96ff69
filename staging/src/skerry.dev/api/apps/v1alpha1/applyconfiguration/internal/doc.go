// Package internal has the schema of apps.skerry.dev, by which apply configurations
// are extracted from objects.
package internal
