// Package v1alpha1 holds the grids: DeploymentGrid, StatefulSetGrid and
// ServiceGrid, which stamp one workload or Service out for each site.
//
// Templates and patches are kept as the JSON that the user wrote, not as Go
// structs: a field that a later Kubernetes adds passes through, and a field that
// is not there stays the right of whoever sets it (an autoscaler's replicas).
//
// A later version of the group is served beside this one, with a conversion that
// loses nothing both ways; v1alpha1 is dropped two minor releases after that.
//
// It must not import anything but the Go standard library and k8s.io/api and
// k8s.io/apimachinery.
//
// +kubebuilder:object:generate=true
// +kubebuilder:ac:generate=true
// +groupName=apps.skerry.dev
package v1alpha1
