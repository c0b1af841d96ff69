package store

import (
	"bytes"
	"slices"
	"strings"

	bolt "go.etcd.io/bbolt"
)

// layer is a set of changes over the file, in memory. A reader sees the newest
// layer that has a key; last writer wins.
type layer struct {
	tables [nBuckets]table
	ops    int   // changed keys
	bytes  int64 // of keys and values
}

type table struct {
	values map[string][]byte // nil: deleted
	keys   []string          // sorted
}

func (l *layer) set(b bucket, key string, value []byte) {
	t := &l.tables[b]
	old, found := t.values[key]
	if !found {
		if t.values == nil {
			t.values = map[string][]byte{}
		}
		if n := len(t.keys); n == 0 || t.keys[n-1] < key {
			t.keys = append(t.keys, key)
		} else {
			i, _ := slices.BinarySearch(t.keys, key)
			t.keys = slices.Insert(t.keys, i, key)
		}
		l.ops++
		l.bytes += int64(len(key))
	}
	l.bytes += int64(len(value) - len(old))
	t.values[key] = value
}

// put is set, with a value that is not nil however empty.
func (l *layer) put(b bucket, key string, value []byte) {
	if value == nil {
		value = []byte{}
	}
	l.set(b, key, value)
}

// each calls fn with every change, bucket by bucket in order of keys.
func (l *layer) each(fn func(b bucket, key string, value []byte) error) error {
	for b := range l.tables {
		t := &l.tables[b]
		for _, k := range t.keys {
			if err := fn(bucket(b), k, t.values[k]); err != nil {
				return err
			}
		}
	}
	return nil
}

// merge puts the changes of a newer layer over l.
func (l *layer) merge(newer *layer) {
	_ = newer.each(func(b bucket, key string, value []byte) error {
		l.set(b, key, value)
		return nil
	})
}

// reader reads through the layers, newest first, down to the file.
type reader struct {
	layers []*layer
	tx     *bolt.Tx
	opened [nBuckets]*bolt.Bucket // each costs some memory to open
}

func (r *reader) get(b bucket, key []byte) []byte {
	for _, l := range r.layers {
		if v, ok := l.tables[b].values[string(key)]; ok {
			return v
		}
	}
	if bk := r.bucket(b); bk != nil {
		return bk.Get(key)
	}
	return nil
}

func (r *reader) bucket(b bucket) *bolt.Bucket {
	if r.tx == nil {
		return nil
	}
	if r.opened[b] == nil {
		r.opened[b] = r.tx.Bucket([]byte(bucketNames[b]))
	}
	return r.opened[b]
}

// each calls fn with each record whose key begins with prefix and is greater
// than after (nil: all), in order, until fn returns false. Key and value are
// valid until fn returns.
func (r *reader) each(b bucket, prefix, after []byte, fn func(key, value []byte) (bool, error)) error {
	type source struct {
		keys   []string
		values map[string][]byte
	}
	start := prefix
	if after != nil && bytes.Compare(after, prefix) > 0 {
		start = after
	}
	var sources []source
	for _, l := range r.layers {
		t := &l.tables[b]
		if len(t.keys) == 0 {
			continue
		}
		i, found := slices.BinarySearch(t.keys, string(start))
		if found && after != nil && t.keys[i] == string(after) {
			i++
		}
		sources = append(sources, source{keys: t.keys[i:], values: t.values})
	}
	var cursor *bolt.Cursor
	var key, value []byte
	if bk := r.bucket(b); bk != nil {
		cursor = bk.Cursor()
		key, value = cursor.Seek(start)
		if key != nil && after != nil && bytes.Equal(key, after) {
			key, value = cursor.Next()
		}
	}
	for {
		if key != nil && !bytes.HasPrefix(key, prefix) {
			key = nil
		}
		best := -1 // the file
		var lowest string
		for i := range sources {
			s := &sources[i]
			if len(s.keys) == 0 || !strings.HasPrefix(s.keys[0], string(prefix)) {
				continue
			}
			if best < 0 || s.keys[0] < lowest {
				best, lowest = i, s.keys[0]
			}
		}
		if best >= 0 && key != nil && string(key) < lowest {
			best = -1
		}
		var k, v []byte
		switch {
		case best >= 0:
			k, v = []byte(lowest), sources[best].values[lowest]
			for i := range sources {
				if s := &sources[i]; len(s.keys) > 0 && s.keys[0] == lowest {
					s.keys = s.keys[1:]
				}
			}
			if key != nil && string(key) == lowest {
				key, value = cursor.Next()
			}
			if v == nil {
				continue
			}
		case key != nil:
			k, v = key, value
			key, value = cursor.Next()
		default:
			return nil
		}
		if v == nil {
			v = []byte{}
		}
		more, err := fn(k, v)
		if err != nil || !more {
			return err
		}
	}
}

// any says whether there is a record whose key begins with prefix.
func (r *reader) any(b bucket, prefix []byte) bool {
	found := false
	_ = r.each(b, prefix, nil, func([]byte, []byte) (bool, error) {
		found = true
		return false, nil
	})
	return found
}
