package serve_test

import (
	"context"
	"fmt"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
)

// The hub beside the same far end without it; test/bench has the real thing.
func BenchmarkRequests(b *testing.B) {
	for _, way := range []string{"direct", "hub"} {
		b.Run(way, func(b *testing.B) {
			c, h := benchHub(b)
			config := protobufOf(h.asNode())
			if way == "direct" {
				cert := c.ca.issue(b, "system:node:"+nodeName, []string{"system:nodes"})
				config = protobufOf(&rest.Config{Host: c.server.URL, QPS: -1, TLSClientConfig: rest.TLSClientConfig{
					CAData: c.ca.pem, CertData: certPEM(cert), KeyData: keyPEM(b, cert)}})
			}
			client := typed(b, config).CoreV1()
			b.Run("get", func(b *testing.B) {
				for b.Loop() {
					if _, err := client.ConfigMaps("default").Get(context.Background(), "m0", metav1.GetOptions{}); err != nil {
						b.Fatal(err)
					}
				}
			})
			for _, version := range []string{"", "0"} {
				b.Run("list"+version, func(b *testing.B) {
					for b.Loop() {
						l, err := client.Services("").List(context.Background(), metav1.ListOptions{ResourceVersion: version})
						if err != nil || len(l.Items) != 500 {
							b.Fatal(len(l.Items), err)
						}
					}
				})
			}
		})
	}
}

func benchHub(b *testing.B) (*cloud, *hub) {
	b.Helper()
	c := newCloud(b)
	c.put("configmaps", configMap("default", "m0", map[string]string{"k": strings.Repeat("v", 1000)}))
	for i := range 500 {
		c.put("services", service(fmt.Sprintf("s%d", i), "10.96.1.1"))
	}
	return c, newHub(b, c)
}
