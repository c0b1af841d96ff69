// Command images writes Skerry's container images as OCI archives, one file an
// image, from binaries that are built already and Debian packages that are
// downloaded already: no daemon, no registry, no network. hack/build-images.sh
// brings the parts together and calls it. What an image holds is in recipes.go
// and testimages.go; how archives look is the matter of the packages below.
package main

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// parallel images are made at a time: each holds its contents in memory.
const parallel = 2

func main() {
	var s sources
	var tests bool
	flag.StringVar(&s.out, "out", "", "folder with bin, parts, debs, pristine and test, which gets images")
	flag.StringVar(&s.arch, "arch", "", "architecture of the images")
	flag.StringVar(&s.kubernetes, "kubernetes", "", "Kubernetes version of the product, as kubeadm gets it")
	flag.StringVar(&s.upstream, "upstream", "", "Kubernetes version of the unpatched binaries")
	flag.StringVar(&s.source, "source", "", "folder with the source of Kubernetes")
	flag.BoolVar(&tests, "test", false, "write the images that tests use, too")
	flag.Parse()
	if err := run(s, tests); err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}

// run writes every image whose inputs have changed.
func run(s sources, tests bool) error {
	for name, value := range map[string]string{
		"out": s.out, "arch": s.arch, "kubernetes": s.kubernetes, "upstream": s.upstream, "source": s.source,
	} {
		if value == "" {
			return fmt.Errorf("flag -%s is missing; hack/build-images.sh sets it", name)
		}
	}
	recipes := productRecipes(s)
	if tests {
		recipes = append(recipes, testRecipes(s)...)
	}
	m, err := newMaker(s)
	if err != nil {
		return err
	}
	errs := make([]error, len(recipes))
	slots := make(chan struct{}, parallel)
	var wait sync.WaitGroup
	for i, r := range recipes {
		slots <- struct{}{}
		wait.Go(func() {
			defer func() { <-slots }()
			errs[i] = m.step(r)
		})
	}
	wait.Wait()
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// step makes one image unless it is up to date, and says so in a line.
func (m *maker) step(r recipe) error {
	start := time.Now()
	if m.upToDate(r) {
		return nil
	}
	size, err := m.build(r)
	if err != nil {
		return fmt.Errorf("image %s: %w", r.file, err)
	}
	fmt.Printf("image %s: %s (%d MB, %.1f s)\n", filepath.Base(r.file), strings.Join(r.names, ", "), size>>20, time.Since(start).Seconds())
	return nil
}
