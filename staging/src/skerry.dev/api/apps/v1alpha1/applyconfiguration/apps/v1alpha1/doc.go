// Package v1alpha1 has the apply configurations of grids: what a program says
// about a grid when it applies it on the server's side, and nothing else. They
// go to Apply of controller-runtime's client as they are.
package v1alpha1
