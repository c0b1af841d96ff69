package offline

import (
	"sync"

	"k8s.io/component-base/metrics"
	"k8s.io/component-base/metrics/legacyregistry"
)

var (
	relaxedPulls = metrics.NewCounter(&metrics.CounterOpts{
		Namespace:      "skerry",
		Subsystem:      "kubelet",
		Name:           "relaxed_pulls_total",
		Help:           "Times a container with imagePullPolicy Always was treated as IfNotPresent because the cloud is away.",
		StabilityLevel: metrics.ALPHA,
	})
	toleratedRejections = metrics.NewCounterVec(&metrics.CounterOpts{
		Namespace:      "skerry",
		Subsystem:      "kubelet",
		Name:           "tolerated_rejections_total",
		Help:           "Times a pod that was running on this node was not rejected after a restart because the cloud is away.",
		StabilityLevel: metrics.ALPHA,
	}, []string{"reason"})
)

// registerMetrics adds them to what the kubelet shows at /metrics. Without it
// they count nothing.
var registerMetrics = sync.OnceFunc(func() {
	legacyregistry.MustRegister(relaxedPulls, toleratedRejections)
})
