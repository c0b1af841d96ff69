package store

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

const (
	keyBytes     = 32
	nonceBytes   = 12
	sealOverhead = nonceBytes + 16
)

// sealer seals records with AES-256-GCM: a random nonce for each, and the
// record's bucket and key as additional data, so that one record cannot be put
// in the place of another.
type sealer struct {
	aead  cipher.AEAD
	names []byte // key of the hashes that stand for the names of secrets
	check [16]byte
}

func newSealer(key []byte) (*sealer, error) {
	sub := func(purpose string) ([]byte, error) {
		return hkdf.Key(sha256.New, key, nil, "skerry store "+purpose, keyBytes)
	}
	data, err := sub("data")
	if err != nil {
		return nil, err
	}
	names, err := sub("names")
	if err != nil {
		return nil, err
	}
	check, err := sub("check")
	if err != nil {
		return nil, err
	}
	block, err := aes.NewCipher(data)
	if err != nil {
		return nil, err
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		return nil, err
	}
	s := &sealer{aead: aead, names: names}
	copy(s.check[:], check)
	return s, nil
}

func (s *sealer) additional(b bucket, key []byte, part byte) []byte {
	return append([]byte{byte(b), part}, key...)
}

// seal returns nonce and ciphertext. part tells several sealed values of one
// record apart.
func (s *sealer) seal(b bucket, key []byte, part byte, plain []byte) []byte {
	out := make([]byte, nonceBytes, sealOverhead+len(plain))
	_, _ = rand.Read(out) // never fails: the runtime ends the process instead
	return s.aead.Seal(out, out, plain, s.additional(b, key, part))
}

func (s *sealer) unseal(b bucket, key []byte, part byte, sealed []byte) ([]byte, error) {
	if len(sealed) < sealOverhead {
		return nil, fmt.Errorf("%w: sealed value of %d bytes", ErrDamaged, len(sealed))
	}
	plain, err := s.aead.Open(nil, sealed[:nonceBytes], sealed[nonceBytes:], s.additional(b, key, part))
	if err != nil {
		return nil, fmt.Errorf("%w: it cannot be unsealed with the key of this store", ErrDamaged)
	}
	return plain, nil
}

// secretKey is the key of a secret's record. Names may tell something (whose
// token it is), so that only their keyed hash is in the file.
func (s *sealer) secretKey(bucket, name string) []byte {
	mac := hmac.New(sha256.New, s.names)
	mac.Write(append(append([]byte(bucket), 0), name...))
	return append(append([]byte(bucket), 0), mac.Sum(nil)[:16]...)
}

// loadKey reads the key file, or makes it. The problem is something that an
// operator should know although the store works.
func loadKey(path string, readOnly bool) (key []byte, problem string, err error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_CLOEXEC, 0)
	if errors.Is(err, fs.ErrNotExist) && !readOnly {
		key, err = makeKey(path)
		return key, "", err
	}
	if err != nil {
		return nil, "", fmt.Errorf("opening the sealing key: %w", err)
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return nil, "", fmt.Errorf("reading the sealing key: %w", err)
	}
	if !info.Mode().IsRegular() {
		return nil, "", fmt.Errorf("the sealing key %s is no regular file", path)
	}
	if owner := info.Sys().(*syscall.Stat_t).Uid; owner != 0 && int(owner) != os.Geteuid() {
		return nil, "", fmt.Errorf("the sealing key %s belongs to user %d, who could read every secret: chown it to root, or remove it and the store", path, owner)
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		// The node must come up; what has leaked has leaked.
		if readOnly {
			problem = fmt.Sprintf("the sealing key %s can be read by others (mode %#o)", path, mode)
		} else {
			if err := f.Chmod(0o600); err != nil {
				return nil, "", fmt.Errorf("the sealing key %s can be read by others (mode %#o), and that cannot be changed: %w", path, mode, err)
			}
			problem = fmt.Sprintf("the sealing key %s could be read by others (mode %#o); it is 0600 now, but the secrets of this node may be known", path, mode)
		}
	}
	key = make([]byte, keyBytes+1)
	n, _ := f.Read(key)
	if n != keyBytes {
		if readOnly {
			return nil, "", fmt.Errorf("the sealing key %s has a wrong length", path)
		}
		aside := fmt.Sprintf("%s.damaged-%d", path, time.Now().Unix())
		if err := os.Rename(path, aside); err != nil {
			return nil, "", fmt.Errorf("the sealing key %s has a wrong length and cannot be set aside: %w", path, err)
		}
		key, err = makeKey(path)
		return key, fmt.Sprintf("the sealing key had a wrong length and is set aside as %s; secrets kept so far are lost", aside), err
	}
	return key[:keyBytes], problem, nil
}

func makeKey(path string) ([]byte, error) {
	key := make([]byte, keyBytes)
	_, _ = rand.Read(key)
	tmp := path + ".tmp"
	_ = os.Remove(tmp)
	if err := writeFileSync(tmp, key); err != nil {
		return nil, fmt.Errorf("making the sealing key: %w", err)
	}
	if err := os.Rename(tmp, path); err != nil {
		return nil, fmt.Errorf("making the sealing key: %w", err)
	}
	if err := syncDir(filepath.Dir(path)); err != nil {
		return nil, fmt.Errorf("making the sealing key: %w", err)
	}
	return key, nil
}

func writeFileSync(path string, data []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL|syscall.O_NOFOLLOW|syscall.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	if _, err = f.Write(data); err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return err
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer func() { _ = d.Close() }()
	return d.Sync()
}
