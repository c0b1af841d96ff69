package wire

import "google.golang.org/protobuf/encoding/protowire"

// protoLabels looks labels up in the bytes of a message: a labels.Labels.
type protoLabels []byte

func (p protoLabels) find(label string) (found []byte, ok bool) {
	// Malformed parts end the search: whoever made the object checked them.
	_ = eachField(p, func(num protowire.Number, typ protowire.Type, value []byte, _ uint64, _ []byte) error {
		if num != fieldMetadata || typ != protowire.BytesType {
			return nil
		}
		return eachField(value, func(num protowire.Number, typ protowire.Type, entry []byte, _ uint64, _ []byte) error {
			if num != metaLabels || typ != protowire.BytesType {
				return nil
			}
			var key, val []byte
			err := eachField(entry, func(num protowire.Number, _ protowire.Type, value []byte, _ uint64, _ []byte) error {
				switch num {
				case 1:
					key = value
				case 2:
					val = value
				}
				return nil
			})
			if err == nil && string(key) == label {
				found, ok = val, true
			}
			return err
		})
	})
	return found, ok
}

func (p protoLabels) Has(label string) bool {
	_, ok := p.find(label)
	return ok
}

func (p protoLabels) Get(label string) string {
	value, _ := p.find(label)
	return string(value)
}

func (p protoLabels) Lookup(label string) (string, bool) {
	value, ok := p.find(label)
	return string(value), ok
}
