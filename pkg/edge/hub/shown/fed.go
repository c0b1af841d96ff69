package shown

import (
	"compress/gzip"
	"io"

	"skerry.dev/skerry/pkg/edge/hub/wire"
	"skerry.dev/skerry/pkg/edge/store"
)

// fed runs a reader beside the stream, which gets a chunk when the reader has
// used up the one before: when write returns, all that was written has been seen.
type fed struct {
	read   func(io.Reader)
	chunks chan []byte
	hungry chan struct{} // the reader wants more
	done   chan struct{} // the reader has ended
	rest   []byte
	fed    bool // has had a chunk
	ended  bool // there are no more
	begun  bool
}

func newFed(read func(io.Reader)) *fed {
	return &fed{read: read, chunks: make(chan []byte), hungry: make(chan struct{}), done: make(chan struct{})}
}

func (f *fed) run() {
	defer close(f.done)
	defer func() { _ = recover() }() // bytes from afar: nothing of them may end the agent
	f.read(f)
}

// Read is for the reader beside.
func (f *fed) Read(p []byte) (int, error) {
	for len(f.rest) == 0 {
		if f.ended {
			return 0, io.EOF // some readers ask again
		}
		if f.fed {
			f.hungry <- struct{}{}
		}
		f.fed = true
		chunk, ok := <-f.chunks
		if !ok {
			f.ended = true
			return 0, io.EOF
		}
		f.rest = chunk
	}
	n := copy(p, f.rest)
	f.rest = f.rest[n:]
	return n, nil
}

func (f *fed) write(p []byte) bool {
	if !f.begun {
		f.begun = true
		go f.run()
	}
	select {
	case f.chunks <- p:
	case <-f.done:
		return false
	}
	select {
	case <-f.hungry:
		return true
	case <-f.done:
		return false
	}
}

// stop ends the reader, and waits until it has.
func (f *fed) stop() {
	if f.begun {
		close(f.chunks)
		<-f.done
	}
}

// newInflated gives a scanner what is compressed.
func newInflated(s scanner) *fed {
	return newFed(func(r io.Reader) {
		plain, err := gzip.NewReader(r)
		if err != nil {
			return
		}
		// Else it asks for what follows before it gives what it has.
		plain.Multistream(false)
		if inner, ok := s.(*fed); ok {
			defer inner.stop()
		}
		buffer := make([]byte, 8<<10)
		for {
			n, err := plain.Read(buffer)
			if n > 0 && !s.write(buffer[:n]) || err != nil {
				return
			}
		}
	})
}

// maxItem bounds one object.
const maxItem = 8 << 20

// scanCBOR decodes, as CBOR has no order that would tell where to look; hardly
// any client asks for it.
func scanCBOR(r io.Reader, a Answer, fn func(uint64)) {
	switch {
	case a.Watch:
		events, err := wire.NewEventReader(a.ContentType, r, a.Key, maxItem)
		for err == nil {
			var e wire.Event
			if e, err = events.Next(); err == nil && e.Object.ResourceVersion > 0 {
				fn(e.Object.ResourceVersion)
			}
		}
	case a.List:
		if list, err := wire.ReadList(a.ContentType, r, a.Key, maxItem, func(store.Object) error { return nil }); err == nil {
			if rv := number([]byte(list.ResourceVersion)); rv > 0 {
				fn(rv)
			}
		}
	default:
		data, err := io.ReadAll(io.LimitReader(r, maxItem))
		if err != nil {
			return
		}
		if o, err := wire.Decode(a.ContentType, data, a.Key); err == nil && o.ResourceVersion > 0 {
			fn(o.ResourceVersion)
		}
	}
}
