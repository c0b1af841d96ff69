package servicegroup

import (
	"fmt"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	gridv1 "skerry.dev/api/apps/v1alpha1"
	"skerry.dev/skerry/pkg/cloud/servicegroup/shape"
)

// kind is a kind of grids that make a workload in each site.
type kind struct {
	name  string
	shape shape.Kind

	newGrid  func() client.Object
	newGrids func() client.ObjectList
	newChild func() client.Object
	open     func(client.Object) parts
	// children of a grid, and each grid of a list.
	newChildren func() client.ObjectList
	each        func(client.ObjectList, func(client.Object))
	// observe reads the state of a child.
	observe func(client.Object) state
}

// parts of a grid.
type parts struct {
	template *runtime.RawExtension
	spec     *gridv1.WorkloadGridSpec
	status   *gridv1.WorkloadGridStatus
}

// state of a child.
type state struct {
	desired, ready, replicas int32
	// complete: it runs what it was told, with all pods ready; finished: it did
	// so once since it was told; failed: it says itself that it does not get there.
	complete, finished, failed bool
	detail                     string
}

var deployments = kind{
	name: "DeploymentGrid", shape: shape.Deployment,
	newGrid:     func() client.Object { return new(gridv1.DeploymentGrid) },
	newGrids:    func() client.ObjectList { return new(gridv1.DeploymentGridList) },
	newChild:    func() client.Object { return new(appsv1.Deployment) },
	newChildren: func() client.ObjectList { return new(appsv1.DeploymentList) },
	open: func(o client.Object) parts {
		g := o.(*gridv1.DeploymentGrid)
		return parts{&g.Spec.Template, &g.Spec.WorkloadGridSpec, &g.Status}
	},
	each: func(list client.ObjectList, do func(client.Object)) {
		switch l := list.(type) {
		case *gridv1.DeploymentGridList:
			for i := range l.Items {
				do(&l.Items[i])
			}
		case *appsv1.DeploymentList:
			for i := range l.Items {
				do(&l.Items[i])
			}
		}
	},
	observe: func(o client.Object) state { return observeDeployment(o.(*appsv1.Deployment)) },
}

var statefulSets = kind{
	name: "StatefulSetGrid", shape: shape.StatefulSet,
	newGrid:     func() client.Object { return new(gridv1.StatefulSetGrid) },
	newGrids:    func() client.ObjectList { return new(gridv1.StatefulSetGridList) },
	newChild:    func() client.Object { return new(appsv1.StatefulSet) },
	newChildren: func() client.ObjectList { return new(appsv1.StatefulSetList) },
	open: func(o client.Object) parts {
		g := o.(*gridv1.StatefulSetGrid)
		return parts{&g.Spec.Template, &g.Spec.WorkloadGridSpec, &g.Status}
	},
	each: func(list client.ObjectList, do func(client.Object)) {
		switch l := list.(type) {
		case *gridv1.StatefulSetGridList:
			for i := range l.Items {
				do(&l.Items[i])
			}
		case *appsv1.StatefulSetList:
			for i := range l.Items {
				do(&l.Items[i])
			}
		}
	},
	observe: func(o client.Object) state { return observeStatefulSet(o.(*appsv1.StatefulSet)) },
}

func observeDeployment(d *appsv1.Deployment) state {
	s := state{desired: ptr.Deref(d.Spec.Replicas, 1), ready: d.Status.ReadyReplicas, replicas: d.Status.Replicas}
	s.detail = fmt.Sprintf("%d of %d pods ready", s.ready, s.desired)
	if d.Status.ObservedGeneration < d.Generation || d.DeletionTimestamp != nil {
		return s
	}
	s.complete = d.Status.UpdatedReplicas == s.desired && d.Status.Replicas == s.desired && d.Status.AvailableReplicas == s.desired
	if d.Status.UpdatedReplicas < s.desired || d.Status.Replicas > d.Status.UpdatedReplicas {
		s.detail += fmt.Sprintf(", %d updated", d.Status.UpdatedReplicas)
	}
	for _, c := range d.Status.Conditions {
		switch {
		case c.Type == appsv1.DeploymentProgressing && c.Reason == "NewReplicaSetAvailable":
			s.finished = true
		case c.Type == appsv1.DeploymentProgressing && c.Status == corev1.ConditionFalse && c.Reason == "ProgressDeadlineExceeded":
			s.failed = true
			s.detail += "; " + c.Message
		case c.Type == appsv1.DeploymentReplicaFailure && c.Status == corev1.ConditionTrue:
			s.detail += "; " + c.Message
		}
	}
	return s
}

func observeStatefulSet(o *appsv1.StatefulSet) state {
	s := state{desired: ptr.Deref(o.Spec.Replicas, 1), ready: o.Status.ReadyReplicas, replicas: o.Status.Replicas}
	s.detail = fmt.Sprintf("%d of %d pods ready", s.ready, s.desired)
	if o.Status.ObservedGeneration < o.Generation || o.DeletionTimestamp != nil {
		return s
	}
	// Pods below the partition, and with OnDelete all, keep what they had.
	toUpdate := s.desired
	if o.Spec.UpdateStrategy.Type == appsv1.OnDeleteStatefulSetStrategyType {
		toUpdate = 0
	} else if r := o.Spec.UpdateStrategy.RollingUpdate; r != nil {
		toUpdate = max(0, s.desired-ptr.Deref(r.Partition, 0))
	}
	current := o.Status.CurrentRevision == o.Status.UpdateRevision
	// A StatefulSet does not count its updated pods once all of them are.
	updated := o.Status.UpdatedReplicas >= toUpdate || current
	s.complete = updated && o.Status.Replicas == s.desired && o.Status.AvailableReplicas == s.desired
	s.finished = updated && o.Status.Replicas >= s.desired && current
	if !updated {
		s.detail += fmt.Sprintf(", %d updated", o.Status.UpdatedReplicas)
	}
	return s
}
