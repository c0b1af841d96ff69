package offline

import v1 "k8s.io/api/core/v1"

// pullPolicy takes Always for IfNotPresent while the cloud is away: before the
// pull, not after it has failed, because pulls wait for each other, half a
// minute each when the registry is away too. An absent image is still pulled
// (the registry may be in the site), and whether the pod may use a present one
// is decided as for every pod with IfNotPresent.
func pullPolicy(offline func() bool) func(*v1.Pod, string, v1.PullPolicy) v1.PullPolicy {
	return func(_ *v1.Pod, _ string, policy v1.PullPolicy) v1.PullPolicy {
		if policy != v1.PullAlways || !offline() {
			return policy
		}
		relaxedPulls.Inc()
		return v1.PullIfNotPresent
	}
}
