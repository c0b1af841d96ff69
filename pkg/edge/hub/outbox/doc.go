// Package outbox is where the writes of the node's own components go while the
// cloud is away: they are applied to the stored copy, kept in a durable queue,
// and sent when the cloud is back. It knows the rules by which a status that
// was written here and an object that was changed there become one. It must not
// know how requests come in, how objects reach watchers, or who is upstream;
// and it takes writes from nobody but the node.
//
// # What is taken
//
// While the cloud is away, from the node only:
//
//   - the status of stored pods of this node, and of its own Node object: PATCH
//     (strategic merge, merge, JSON patch) and PUT. Only .status changes, as the
//     API server's status strategies have it, and of it only what a kubelet may
//     write: QoS class, resource claims, nominated node and attached volumes stay.
//   - its own Lease: acknowledged and kept, never sent. The kubelet renews it.
//     One that could not be read may be made.
//   - events: a bounded queue, the oldest go first.
//   - creation of its own Node: AlreadyExists, if it is stored.
//
// Everything else is ErrNotOffline, which a client sees as 503 and tries again.
// That includes deletion of pods: the kubelet asks for the final removal of a
// terminated pod every ten seconds until somebody hears it; the pod is in a
// terminal phase, which is stored, so it does not start again meanwhile, not
// even after a reboot. Removing it here could only bring it back when the cloud
// shows it the next time.
//
// # What is not believed
//
// A kubelet that is asked to shut the machine down marks its pods Failed. In the
// cloud somebody makes new ones; on an island nobody does, and the pods would
// not start after the reboot. So a transition to Failed with the reasons of a
// shutdown (Terminated with its message, NodeShutdown), and a pod's rejection by
// the kubelet's admission ("Pod was rejected: "), is acknowledged and neither
// stored nor queued. The kubelet itself repeats it to the cloud for as long as it
// thinks so. Evictions, preemptions and exits of containers are real and are kept.
//
// # How two versions become one
//
// The queue has one entry for the status of an object. An entry is a difference,
// not a status: which fields of .status the kubelet wrote, and their last value.
// Conditions count one by one, by their type; capacity and allocatable by key;
// every other field as a whole. The rules, where "cloud" is what the API server
// has, for an object that has an entry:
//
//   - other UID, or no such object on this node: the entry is dropped.
//   - cloud phase is Succeeded or Failed: the entry is dropped. A terminal phase
//     has been counted by controllers; it does not change any more.
//   - metadata and spec are the cloud's; so a deletion that was asked during the
//     outage is seen at once.
//   - fields and conditions that the kubelet wrote are the kubelet's, others are
//     the cloud's; those include readiness gates and whatever another manager
//     added or changed.
//   - of a container that has restarted more often in the cloud's status, the
//     cloud's status is the newer one. observedGeneration never goes down.
//
// Merging twice changes nothing, so a crash at any point of a replay is harmless.
//
// # Order and resourceVersions
//
// A change that is made here takes the revision after the highest that a client
// has been shown, in the same durable batch. Nothing takes one while the cloud is
// online, and nothing is sent before the cloud is beyond what was taken: else the
// object would come back with a lower one. As long as an entry is unsent, status writes of its object go behind it
// (Holds), because the kubelet's newest word must not be overtaken by an old one.
package outbox
