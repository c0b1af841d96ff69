package views

import (
	"context"
	"errors"
	"time"
)

// gate is one period of the link: open between the moment when the cloud may be
// presented and the loss of the link.
type gate struct {
	open   chan struct{} // closed when the cloud may be presented
	ctx    context.Context
	cancel context.CancelFunc // at the loss of the link
}

func newGate(parent context.Context) *gate {
	ctx, cancel := context.WithCancel(parent)
	return &gate{open: make(chan struct{}), ctx: ctx, cancel: cancel}
}

// gates opens the gate after each reconnect, when BeforeLive agrees.
func (vs *Views) gates(ctx context.Context) {
	var retry <-chan time.Time
	wait := backoff{min: vs.o.RetryMin, max: vs.o.RetryMax}
	for first := true; ; first = false {
		if !first {
			select {
			case <-ctx.Done():
				return
			case <-vs.changed:
				wait.reset()
			case <-retry:
			}
		}
		retry = nil
		vs.mu.Lock()
		up, g := vs.up, vs.gate
		vs.mu.Unlock()
		if !up || g.isOpen() || ctx.Err() != nil {
			continue
		}
		err := vs.o.BeforeLive(g.ctx)
		switch {
		case g.ctx.Err() != nil:
			continue
		case errors.Is(err, ErrRestored):
			vs.log.Warn("the cloud has been restored from a backup: all watches start over", "error", err)
			if err := vs.startOver(err); err != nil {
				vs.log.Error("beginning anew after the cloud was restored", "error", err)
				retry = time.After(wait.next())
				continue
			}
		case err != nil:
			vs.log.Warn("the cloud is not presented yet", "error", err)
			retry = time.After(wait.next())
			continue
		}
		vs.reconnected()
		close(g.open)
	}
}

// reconnected is the moment before the cloud is presented again: if local changes
// were shown meanwhile, its revision is beyond them now. Clients that were served
// from a view which is not the one of their query list anew, in their own view: the
// differences of one view lead nowhere in another.
func (vs *Views) reconnected() {
	top := vs.top()
	for _, v := range vs.all() {
		v.mu.Lock()
		if top > v.suspectTo {
			v.suspect(top)
		}
		for w := range v.watchers {
			if w.borrowed {
				w.expire(v.shown())
			}
		}
		v.mu.Unlock()
	}
}

func (g *gate) isOpen() bool {
	select {
	case <-g.open:
		return g.ctx.Err() == nil
	default:
		return false
	}
}

func (vs *Views) currentGate() *gate {
	vs.mu.Lock()
	defer vs.mu.Unlock()
	return vs.gate
}

// link notes a change of the link. Losing it ends every upstream stream and makes
// views wait for the next time; so a gate belongs to one period of the link.
func (vs *Views) link(up bool) {
	vs.mu.Lock()
	defer vs.mu.Unlock()
	if vs.up && !up {
		vs.gate.cancel()
		vs.gate = newGate(vs.running)
	}
	vs.up = up
}

// tryGate makes gates look whether a gate can be opened.
func (vs *Views) tryGate() {
	select {
	case vs.changed <- struct{}{}:
	default:
	}
}

// newPeriod is as if the link had been lost and were back: BeforeLive is to judge.
func (vs *Views) newPeriod() {
	vs.mu.Lock()
	defer vs.mu.Unlock()
	if vs.running != nil {
		vs.gate.cancel()
		vs.gate = newGate(vs.running)
		vs.tryGate()
	}
}

func (vs *Views) isUp() bool {
	vs.mu.Lock()
	defer vs.mu.Unlock()
	return vs.up
}
