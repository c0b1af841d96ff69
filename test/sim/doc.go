// Package sim simulates the whole way from a fault to a verdict: the real rules
// of the observers (pkg/edge/observer/detect and report) and the real decision of
// the cloud (pkg/cloud/verdict), on a network, a cloud and a clock that are made
// up here.
//
// Everything happens on one goroutine, as events in the order of a simulated
// clock, and all randomness comes from one seed: a run is replayed exactly by
//
//	go test ./test/sim -run Seed -sim.seed=N [-sim.trace]
//
// and thousands of them are run by -sim.schedules=N.
//
// # What is real and what is modelled
//
// Real: detector, reporter, their wire format, tracker, decision. Modelled, as
// small as they can be and still behave badly in the way the real ones do: the
// mesh between observers (connections with a handshake, idle time and loss), the
// hub (knows after a while that the cloud is away, and takes lease renewals
// meanwhile), kubelets (a lease each 10 s), requests to and watches of the API
// server (retransmission, time-outs whose request was executed all the same, old
// news, seconds old if need be), the controller around the tracker, which asks the
// API server itself before it calls a node dead, and the few lines of
// kube-controller-manager that turn a verdict and a stale lease into a taint.
// Clocks of nodes and of controllers are hours apart.
//
// # What must hold
//
// Observer o reaches node x at a moment when, at that moment, both machines run,
// so do the observers on both, they are on the same local network, and packets
// get through directly in both directions, with at most maxLoss lost each way.
// It is connected when machine, agent and kubelet of o run and packets get
// through between o and an API server that answers, with at most maxLoss lost
// each way. Observers of x are those whose Nodes carry the label of x's site.
//
// patience is 12 s, maxLoss 50 %, relapse 30 s, detection 30 s, settling 2 min,
// healing 1 min (3 min if a site has more than 16 nodes), freshLease 14 s,
// known 1.1 s; truth.go has them.
//
//  1. No node is called dead, and none is tainted, while an observer of its site
//     that was connected for the last patience reached it for the last patience.
//     A node that is called dead does not stay so for longer than relapse while
//     such an observer reaches it. Exempt is KubeletDown: then kubelet or runtime
//     must have been down, for as long as the site's kubeletGrace says.
//  2. No node is called dead for Unreachable unless as many nodes of its site as
//     the policy asks for were in contact with the API server lately and
//     say so, or did until known before; nor for HoldTimeout before its time, whoever ran when the last
//     heartbeat came.
//  3. A machine that loses its power, or freezes, while nothing else was wrong
//     for the last minute, and that has a connected witness, is tainted within
//     detection. In the midst of other faults that stand still it is called dead
//     after settling at most.
//  4. After all faults have ended, all that was wrong is right again within
//     healing: conditions, questions, reports and what observers know. A report
//     that nobody renews is left to the controller, which removes it in minutes.
//  5. After that nobody writes anything.
//  6. No taint is set on a node whose lease was renewed less than freshLease ago.
//     No node is called dead either, for Unreachable or HoldTimeout, whose lease
//     in the API server was renewed less than freshLease ago, or about which a
//     report there, renewed as it has to be, says since known that it is reached.
//     That holds however late the watches are.
//  7. No agent writes its report more often than each second, and none spins.
package sim
