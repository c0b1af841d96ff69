package store

import (
	"fmt"

	bolt "go.etcd.io/bbolt"
)

// schemaVersion is what this program writes. Version 1 is the first.
const schemaVersion = 1

// migration brings a file from one version to the next. It runs in the
// transaction that also writes the new version, so that a file is always of one
// version.
type migration func(tx *bolt.Tx) error

// migrations has the step from each older version.
var migrations = map[uint64]migration{}

// SchemaError says that a file was written by a version of Skerry that this
// program cannot follow.
type SchemaError struct {
	Have, Know uint64
}

func (e *SchemaError) Error() string {
	if e.Have > e.Know {
		return fmt.Sprintf("its schema is version %d and this program knows versions up to %d: install the newer Skerry again, or remove the file (the node then has to learn everything from the cloud)", e.Have, e.Know)
	}
	return fmt.Sprintf("its schema is version %d, which this program cannot bring to version %d", e.Have, e.Know)
}

// migrate brings a file to version to.
func migrate(db *bolt.DB, steps map[uint64]migration, to uint64, readOnly bool) error {
	have := uint64(0)
	err := db.View(func(tx *bolt.Tx) (err error) {
		have, err = schemaOf(tx)
		return err
	})
	if err != nil {
		return err
	}
	if have == to {
		return nil
	}
	if have == 0 || have > to || readOnly {
		return &SchemaError{Have: have, Know: to}
	}
	return db.Update(func(tx *bolt.Tx) error {
		for v := have; v < to; v++ {
			step := steps[v]
			if step == nil {
				return &SchemaError{Have: have, Know: to}
			}
			if err := step(tx); err != nil {
				return fmt.Errorf("migrating from version %d to %d: %w", v, v+1, err)
			}
		}
		if err := unmark(tx); err != nil {
			return err
		}
		return tx.Bucket([]byte(bucketNames[bMeta])).Put(schemaKey, appendSchema(to))
	})
}

func schemaOf(tx *bolt.Tx) (uint64, error) {
	meta := tx.Bucket([]byte(bucketNames[bMeta]))
	if meta == nil {
		return 0, fmt.Errorf("%w: the table meta is missing", ErrDamaged)
	}
	return decodeSchema(meta.Get(schemaKey))
}

// unmark is for a transaction that is no commit of the store: the commit that
// the file ends with stays, under whatever number of a transaction.
func unmark(tx *bolt.Tx) error {
	meta := tx.Bucket([]byte(bucketNames[bMeta]))
	m, _, err := decodeMark(meta.Get(markKey))
	if err != nil {
		return err
	}
	return meta.Put(markKey, m.append(0))
}
