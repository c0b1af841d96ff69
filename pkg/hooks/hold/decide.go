package hold

import (
	"fmt"
	"strings"

	v1 "k8s.io/api/core/v1"

	"skerry.dev/api"
)

// Reason says in one word why a node is held, or why not.
type Reason string

// Reasons for which a node is held. Each means: no evidence that it is dead.
const (
	// NoVerdict: nobody has said anything about the node.
	NoVerdict Reason = "NoVerdict"
	// VerdictUnknown: those who looked could not tell.
	VerdictUnknown Reason = "VerdictUnknown"
	// VerdictAlive: neighbours see the node alive.
	VerdictAlive Reason = "VerdictAlive"
	// VerdictUnreadable: the condition's status is none of the three, or it is
	// there more than once and says different things.
	VerdictUnreadable Reason = "VerdictUnreadable"
)

// Reasons for which a node is not held.
const (
	// NoSite: the node has no site label; it is upstream's business alone.
	NoSite Reason = "NoSite"
	// Dead: the verdict on the node is that it is dead.
	Dead Reason = "Dead"
)

// maxQuote bounds what is quoted from a condition, which others write.
const maxQuote = 200

// Decision is what Decide says about one node.
type Decision struct {
	Held   bool
	Site   string
	Reason Reason
	// Detail is the reason as a half sentence for people.
	Detail string
}

// Decide says whether this node would be held if its heartbeat were lost. It
// looks at nothing but the node: the same answer in every goroutine, after every
// restart, and from the first pass on.
func Decide(node *v1.Node) Decision {
	site, ok := node.Labels[api.SiteLabel]
	if !ok {
		return Decision{Reason: NoSite, Detail: "it is in no site (no label " + api.SiteLabel + ")"}
	}
	d := Decision{Held: true, Site: site, Reason: NoVerdict, Detail: "no evidence that it is dead"}
	found := false
	for i := range node.Status.Conditions {
		c := &node.Status.Conditions[i]
		if c.Type != api.AliveCondition {
			continue
		}
		if found {
			d.Held, d.Reason, d.Detail = true, VerdictUnreadable, "condition "+api.AliveCondition+" is there more than once"
			return d
		}
		found = true
		said := fmt.Sprintf("condition %s is %s (%s)", api.AliveCondition, quote(string(c.Status)), quote(c.Reason+": "+c.Message))
		switch c.Status {
		case v1.ConditionFalse:
			d.Held, d.Reason, d.Detail = false, Dead, "it is dead: "+said
		case v1.ConditionTrue:
			d.Reason, d.Detail = VerdictAlive, "it is seen alive: "+said
		case v1.ConditionUnknown:
			d.Reason, d.Detail = VerdictUnknown, "nobody can tell whether it is dead: "+said
		default:
			d.Reason, d.Detail = VerdictUnreadable, "the verdict cannot be read: "+said
		}
	}
	return d
}

func quote(s string) string {
	if len(s) > maxQuote {
		return strings.ToValidUTF8(s[:maxQuote], "") + "..."
	}
	return s
}
