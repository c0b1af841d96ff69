package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// GroupVersion is the group and version of this package.
var GroupVersion = schema.GroupVersion{Group: "apps.skerry.dev", Version: "v1alpha1"}

// SchemeGroupVersion is what generated code calls it.
var SchemeGroupVersion = GroupVersion

// AddToScheme adds the types of this package to a scheme.
func AddToScheme(scheme *runtime.Scheme) error {
	scheme.AddKnownTypes(GroupVersion,
		&DeploymentGrid{}, &DeploymentGridList{},
		&StatefulSetGrid{}, &StatefulSetGridList{},
		&ServiceGrid{}, &ServiceGridList{})
	metav1.AddToGroupVersion(scheme, GroupVersion)
	return nil
}
