package sim

import "time"

// clock is simulated time, and what happens in it. Events of the same moment
// happen in the order in which they were asked for.
type clock struct {
	now   time.Duration
	seq   uint64
	queue []event
}

type event struct {
	at  time.Duration
	seq uint64
	do  func()
}

func (c *clock) after(d time.Duration, do func()) {
	c.seq++
	c.push(event{c.now + max(d, 0), c.seq, do})
}

// step runs the next event; false if there is none before end.
func (c *clock) step(end time.Duration) bool {
	if len(c.queue) == 0 || c.queue[0].at > end {
		c.now = end
		return false
	}
	e := c.pop()
	c.now = e.at
	e.do()
	return true
}

// before orders events; the rest is a binary heap.
func (c *clock) before(i, j int) bool {
	a, b := &c.queue[i], &c.queue[j]
	return a.at < b.at || a.at == b.at && a.seq < b.seq
}

func (c *clock) push(e event) {
	c.queue = append(c.queue, e)
	for i := len(c.queue) - 1; i > 0; {
		up := (i - 1) / 2
		if !c.before(i, up) {
			return
		}
		c.queue[i], c.queue[up] = c.queue[up], c.queue[i]
		i = up
	}
}

func (c *clock) pop() event {
	first, last := c.queue[0], len(c.queue)-1
	c.queue[0] = c.queue[last]
	c.queue[last] = event{}
	c.queue = c.queue[:last]
	for i := 0; ; {
		least := i
		for _, child := range []int{2*i + 1, 2*i + 2} {
			if child < last && c.before(child, least) {
				least = child
			}
		}
		if least == i {
			return first
		}
		c.queue[i], c.queue[least] = c.queue[least], c.queue[i]
		i = least
	}
}
