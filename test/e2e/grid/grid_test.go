//go:build e2e

package grid

import (
	"errors"
	"fmt"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"skerry.dev/skerry/pkg/sandbox"
	vocabulary "skerry.dev/skerry/test/sandbox"
)

const description = "sites: [{name: east, nodes: 1}, {name: west, nodes: 2}]"

// echo is a grid of one small server that tells its pod's name. IMAGE, POLICY and
// OVERRIDES are filled in.
const echo = `
apiVersion: apps.skerry.dev/v1alpha1
kind: ServiceGrid
metadata: {name: echo}
spec:
  template: {selector: {app: echo}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: apps.skerry.dev/v1alpha1
kind: DeploymentGrid
metadata: {name: echo}
spec:
  deletionPolicy: {gracePeriodSeconds: 20}
POLICY
  template:
    replicas: 1
    selector: {matchLabels: {app: echo}}
    template:
      metadata: {labels: {app: echo}}
      spec:
        terminationGracePeriodSeconds: 1
        containers:
        - name: echo
          image: IMAGE
          imagePullPolicy: IfNotPresent
          args: [netexec, --http-port=8080]
          readinessProbe: {httpGet: {path: /healthz, port: 8080}, periodSeconds: 1}
`

type subject struct {
	*vocabulary.Sandbox
	t *testing.T
}

func TestGrid(t *testing.T) {
	whole := vocabulary.New(t, description)
	whole.Load("agnhost")
	for _, c := range []struct {
		name string
		do   func(*subject)
	}{
		{"an application of three tiers serves each site by itself", threeTiers},
		{"10000 requests a site and none of them answered elsewhere", closedForEachSite},
		{"one site is other than the rest", overrides},
		{"a broken image stops at the canary and the fix goes on", brokenCanary},
		{"a site that is cut off in a roll-out catches up", cutInTheMiddle},
		{"the last endpoint of a site is gone", lastEndpoint},
		{"a machine joins with a new site and the site goes again", siteComesAndGoes},
		{"a grid is deleted", deleted},
	} {
		if !t.Run(c.name, func(t *testing.T) { c.do(&subject{whole.For(t), t}) }) {
			break // each goes on where the last one stopped
		}
	}
}

func threeTiers(s *subject) {
	s.Step("kubectl apply -k cluster/examples/shop")
	s.Kubectl("apply", "-k", filepath.Join("..", "..", "..", "cluster", "examples", "shop"))
	s.done("web", "ssg/queue", "ssg/db", "client")
	for _, site := range []string{"east", "west"} {
		served := regexp.MustCompile(`served by web-` + site + `-\S+ queue-` + site + `-0 db-` + site + `-0 \d+ orders`)
		var log string
		s.Eventually(time.Minute, "orders of "+site, func() error {
			log = s.clientLog(site)
			if n := len(served.FindAllString(log, -1)); n < 20 {
				return fmt.Errorf("%d served: %s", n, log)
			}
			return nil
		})
		for line := range strings.Lines(log) {
			if strings.Contains(line, "served by") && !served.MatchString(line) {
				s.t.Errorf("a customer of %s was served elsewhere: %s", site, line)
			}
		}
	}
	// The orders arrive in the database.
	s.Eventually(time.Minute, "orders in the databases", func() error {
		for _, site := range []string{"east", "west"} {
			log := strings.TrimSpace(s.clientLog(site))
			last := log[strings.LastIndex(log, "\n")+1:]
			if strings.HasSuffix(last, " 0 orders") || !strings.HasSuffix(last, "orders") {
				return fmt.Errorf("%s: %s", site, last)
			}
		}
		return nil
	})
}

// clientLog is read on the customer's own node.
func (s *subject) clientLog(site string) string {
	s.t.Helper()
	pods, err := s.Kube().CoreV1().Pods("default").List(s.Context(), metav1.ListOptions{LabelSelector: "tier=client,skerry.dev/grid-site=" + site})
	s.must(err)
	if len(pods.Items) != 1 {
		s.t.Fatalf("%d customers in %s", len(pods.Items), site)
	}
	out, err := s.Node(pods.Items[0].Spec.NodeName).Try("sh", "-c", "cat /var/log/pods/default_client-"+site+"-*/client/*.log")
	if err != nil {
		return ""
	}
	return out
}

func closedForEachSite(s *subject) {
	s.apply(vocabulary.Agnhost(), "")
	s.done("echo")
	for _, place := range []struct{ node, site string }{{"east-1", "east"}, {"west-1", "west"}, {"west-2", "west"}} {
		n, address := s.Node(place.node), s.address()
		s.Eventually(30*time.Second, "an answer on "+place.node, func() error {
			if got := s.answers(n, address, 1); got[place.site] != 1 {
				return fmt.Errorf("%v", got)
			}
			return nil
		})
		requests := 10000
		if place.node == "west-2" {
			requests = 1000
		}
		east, west := s.Site("east").Counters(), s.Site("west").Counters()
		got := s.answers(n, address, requests)
		s.t.Logf("%s: %v", place.node, got)
		if got[place.site] != requests {
			s.t.Errorf("%d requests on %s were answered by %v", requests, place.node, got)
		}
		// Other sites can only be reached over the uplinks: they carry the nodes'
		// own conversation with the cloud, and far less than the answers.
		for site, before := range map[string]int64{"east": linkBytes(east), "west": linkBytes(west)} {
			if grown := linkBytes(s.Site(site).Counters()) - before; grown > int64(requests)*300 {
				s.t.Errorf("%d requests on %s put %d bytes on the uplink of %s", requests, place.node, grown, site)
			}
		}
	}
}

func overrides(s *subject) {
	s.apply(vocabulary.Agnhost(), `  overrides:
  - name: west
    sites: [west]
    patch:
      replicas: 2
      template:
        spec:
          nodeSelector: {kubernetes.io/os: linux}
          tolerations: [{key: cold, operator: Exists}]
          containers: [{name: echo, env: [{name: COLD, value: "yes"}]}]
`)
	s.done("echo")
	if got := s.field("deployment/echo-west", "{.spec.replicas} {.spec.template.spec.containers[0].env[0].value} {.status.readyReplicas}"); got != "2 yes 2" {
		s.t.Errorf("west: %s", got)
	}
	if got := s.field("deployment/echo-east", "{.spec.replicas} {.spec.template.spec.containers[0].env} {.status.readyReplicas}"); got != "1  1" {
		s.t.Errorf("east: %s", got)
	}
	_, err := s.TryKubectl("patch", "dg", "echo", "--type=merge", "-p", `{"spec":{"overrides":[{"name":"a","sites":["west"],"patch":{"template":{"spec":{"containers":[{"name":"echo","imag":"x"}]}}}}]}}`)
	if err == nil || !strings.Contains(err.Error(), "spec.overrides[0].patch.template.spec.containers[0].imag") {
		s.t.Errorf("a bad override: %v", err)
	}
}

const canary = "  rollout: {canary: {sites: [west]}, progressDeadlineSeconds: 20}\n"

func brokenCanary(s *subject) {
	s.apply(vocabulary.Agnhost(), canary)
	s.done("echo")
	s.apply("skerry.dev/examples/nothing:v1", canary)
	out, err := s.follow("echo", 3*time.Minute)
	if err == nil || !strings.Contains(out, "stopped: site west:") {
		s.t.Fatalf("the roll-out did not stop: %v\n%s", err, out)
	}
	if got := s.field("deployment/echo-east", "{.spec.template.spec.containers[0].image}"); got != vocabulary.Agnhost() {
		s.t.Errorf("east has %s", got)
	}
	for _, place := range []struct{ node, site string }{{"east-1", "east"}, {"west-1", "west"}} {
		if got := s.answers(s.Node(place.node), s.address(), 20); got[place.site] != 20 {
			s.t.Errorf("%s: %v", place.node, got)
		}
	}
	s.apply(again, canary)
	s.done("echo")
	for _, site := range []string{"east", "west"} {
		if got := s.field("deployment/echo-"+site, "{.spec.template.spec.containers[0].image}"); got != again {
			s.t.Errorf("%s has %s", site, got)
		}
	}
}

// again is the same image by the name that the examples have for it.
const again = "skerry.dev/examples/agnhost:v1"

func cutInTheMiddle(s *subject) {
	west := s.Site("west")
	west.Cut()
	s.WaitReady(2*time.Minute, corev1.ConditionUnknown, west.NodeNames()...)
	s.apply(vocabulary.Agnhost(), "")
	out, err := s.follow("echo", 2*time.Minute)
	if err != nil || !strings.Contains(out, "wait until they can be reached") {
		s.t.Errorf("the others did not finish: %v\n%s", err, out)
	}
	if got := s.field("deployment/echo-west", "{.spec.template.spec.containers[0].image}"); got != again {
		s.t.Errorf("west was changed while it was away: %s", got)
	}
	west.Heal()
	s.WaitReady(2*time.Minute, corev1.ConditionTrue, west.NodeNames()...)
	s.Eventually(2*time.Minute, "west to catch up", func() error {
		if got := s.field("dg/echo", "{.status.phase} {.status.updatedSites}"); got != "Ready 2" {
			return errors.New(got)
		}
		return nil
	})
}

func lastEndpoint(s *subject) {
	s.apply(vocabulary.Agnhost(), "  overrides: [{name: none, sites: [west], patch: {replicas: 0}}]\n")
	s.done("echo")
	// While a pod ends, it is the best endpoint there is, as upstream has it; what
	// is sent to it in its last moment is lost.
	s.Eventually(time.Minute, "the last pod to be gone", func() error {
		if out := s.Kubectl("get", "pods", "-l", "app=echo,skerry.dev/grid-site=west", "-o", "name"); out != "" {
			return errors.New(out)
		}
		return nil
	})
	s.Eventually(time.Minute, "west to be refused", func() error {
		if got := s.answers(s.Node("west-1"), s.address(), 8); got["refused"] != 8 {
			return fmt.Errorf("%v", got)
		}
		return nil
	})
	began := time.Now()
	if got := s.answers(s.Node("west-1"), s.address(), 1000); got["refused"] != 1000 {
		s.t.Errorf("west without a pod: %v", got)
	} else if took := time.Since(began); took > 30*time.Second {
		s.t.Errorf("1000 refusals took %s", took)
	}
	if got := s.answers(s.Node("east-1"), s.address(), 100); got["east"] != 100 {
		s.t.Errorf("east: %v", got)
	}
	s.apply(vocabulary.Agnhost(), "")
	s.done("echo")
}

func siteComesAndGoes(s *subject) {
	machine := s.Node("west-2")
	s.Step("west-2 is reset, and joins with a token of site north")
	s.Kubectl("drain", "west-2", "--ignore-daemonsets", "--delete-emptydir-data", "--force", "--timeout=120s")
	s.Kubectl("delete", "node", "west-2")
	if _, err := machine.Try("skerry", "reset", "--force"); err != nil {
		s.t.Fatal(err)
	}
	command := strings.TrimSpace(s.ControlPlane().Exec("skerry", "token", "create", "--print-join-command", "--site", "north"))
	if _, err := machine.Try("sh", "-c", command+" --config "+sandbox.JoinFile); err != nil {
		s.t.Fatal(err)
	}
	s.must(s.Box().Load(s.Context(), s.TestImage("agnhost"), "west-2"))
	s.WaitReady(3*time.Minute, corev1.ConditionTrue, "west-2")
	s.done("echo")
	if got := s.field("deployment/echo-north", "{.status.readyReplicas}"); got != "1" {
		s.t.Errorf("echo-north has %s pods ready", got)
	}
	s.Eventually(time.Minute, "the new site's own answers", func() error {
		if got := s.answers(machine, s.address(), 50); got["north"] != 50 {
			return fmt.Errorf("%v", got)
		}
		return nil
	})
	s.Step("the site's only node is deleted")
	s.Kubectl("delete", "node", "west-2")
	left := time.Now()
	s.Eventually(30*time.Second, "the site to leave", func() error {
		if got := s.field("dg/echo", "{.status.leavingSites} {.status.attention}"); got != "1 north Leaving" {
			return errors.New(got)
		}
		return nil
	})
	s.Eventually(time.Minute, "the child to go", func() error {
		if out, err := s.TryKubectl("get", "deployment", "echo-north"); err == nil {
			return errors.New(out)
		}
		return nil
	})
	if took := time.Since(left); took < 18*time.Second {
		s.t.Errorf("the child went after %s, before its grace of 20s", took)
	}
}

func deleted(s *subject) {
	s.Kubectl("delete", "grids", "--all")
	s.Eventually(2*time.Minute, "all of it to go", func() error {
		out := s.Kubectl("get", "deploy,sts,pods", "-o", "name")
		services := s.Kubectl("get", "services", "-l", "skerry.dev/grid", "-o", "name")
		if out+services != "" {
			return errors.New(out + services)
		}
		return nil
	})
}
