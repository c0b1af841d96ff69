// Package applyconfiguration finds the apply configuration of a kind of
// apps.skerry.dev, for tools that do not know the kind beforehand, such as fake clients.
package applyconfiguration
