package v1alpha1_test

import (
	"encoding/json"
	"fmt"

	"k8s.io/apimachinery/pkg/runtime"
	apps "k8s.io/client-go/applyconfigurations/apps/v1"
	core "k8s.io/client-go/applyconfigurations/core/v1"
	meta "k8s.io/client-go/applyconfigurations/meta/v1"

	grids "skerry.dev/api/apps/v1alpha1/applyconfiguration/apps/v1alpha1"
)

// Web servers in every site: their number is left to an autoscaler, but for the
// site lab, which has one.
func Example() {
	labels := map[string]string{"app": "web"}
	template := apps.DeploymentSpec().
		WithSelector(meta.LabelSelector().WithMatchLabels(labels)).
		WithTemplate(core.PodTemplateSpec().WithLabels(labels).WithSpec(core.PodSpec().WithContainers(
			core.Container().WithName("web").WithImage("web:v1"))))
	grid := grids.DeploymentGrid("web", "shop").WithSpec(grids.DeploymentGridSpec().
		WithTemplate(raw(template)).
		WithOverrides(grids.Override().WithName("small").WithSites("lab").WithPatch(raw(apps.DeploymentSpec().WithReplicas(1)))))

	// With a client of sigs.k8s.io/controller-runtime:
	//
	//	err := c.Apply(ctx, grid, client.FieldOwner("my-tool"))
	//
	// A field that is not said here stays whoever's it is.
	text, err := json.MarshalIndent(grid.Spec, "", " ")
	if err != nil {
		panic(err)
	}
	fmt.Println(string(text))
	// Output:
	// {
	//  "template": {
	//   "selector": {
	//    "matchLabels": {
	//     "app": "web"
	//    }
	//   },
	//   "template": {
	//    "metadata": {
	//     "labels": {
	//      "app": "web"
	//     }
	//    },
	//    "spec": {
	//     "containers": [
	//      {
	//       "name": "web",
	//       "image": "web:v1"
	//      }
	//     ]
	//    }
	//   }
	//  },
	//  "overrides": [
	//   {
	//    "name": "small",
	//    "sites": [
	//     "lab"
	//    ],
	//    "patch": {
	//     "replicas": 1
	//    }
	//   }
	//  ]
	// }
}

// raw makes a template or a patch of what says a Deployment's spec.
func raw(spec *apps.DeploymentSpecApplyConfiguration) runtime.RawExtension {
	text, err := json.Marshal(spec)
	if err != nil {
		panic(err)
	}
	return runtime.RawExtension{Raw: text}
}
