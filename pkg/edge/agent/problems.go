package agent

import (
	"maps"
	"slices"
	"sync"
)

// problems are what is wrong right now, each under the name of what it is about,
// for the status. The zero value has none.
type problems struct {
	mu  sync.Mutex
	all map[string]string
}

// set notes a problem; nil ends it. It reports whether that is news.
func (p *problems) set(about string, err error) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err == nil {
		_, was := p.all[about]
		delete(p.all, about)
		return was
	}
	if p.all == nil {
		p.all = map[string]string{}
	}
	was := p.all[about]
	p.all[about] = err.Error()
	return was != err.Error()
}

// list returns the problems in the order of their names.
func (p *problems) list() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	var texts []string
	for _, about := range slices.Sorted(maps.Keys(p.all)) {
		texts = append(texts, p.all[about])
	}
	return texts
}
