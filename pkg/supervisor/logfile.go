package supervisor

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"
)

const (
	// A unit's log is at most twice this: the file and the one before it.
	maxLogSize = 8 << 20
	maxLine    = 64 << 10
)

// logWriter writes what comes out of a pipe into a file, and starts a new file
// when it is full. It lives until the last process that inherited the pipe
// ends, which may be long after the unit's own.
type logWriter struct {
	path string
	pipe *os.File // for the unit to write to

	mu   sync.Mutex
	file *os.File
	size int64
	max  int64
}

func openLog(path string) (*logWriter, error) { return openLogSize(path, maxLogSize) }

func openLogSize(path string, size int64) (*logWriter, error) {
	l := &logWriter{path: path, max: size}
	if err := l.open(); err != nil {
		return nil, err
	}
	r, w, err := os.Pipe()
	if err != nil {
		l.file.Close()
		return nil, err
	}
	l.pipe = w
	go l.copy(r)
	return l, nil
}

func (l *logWriter) open() error {
	f, err := os.OpenFile(l.path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o640)
	if err != nil {
		return fmt.Errorf("opening the log: %w", err)
	}
	info, err := f.Stat()
	if err != nil {
		f.Close()
		return err
	}
	l.file, l.size = f, info.Size()
	return nil
}

// release lets the log end once nobody writes to it any more.
func (l *logWriter) release() { l.pipe.Close() }

func (l *logWriter) copy(r *os.File) {
	defer func() {
		r.Close()
		l.mu.Lock()
		defer l.mu.Unlock()
		l.file.Close()
	}()
	lines := bufio.NewReaderSize(r, maxLine)
	for {
		// A line longer than the buffer comes in pieces.
		line, err := lines.ReadSlice('\n')
		if len(line) > 0 {
			l.write(line)
		}
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			return
		}
	}
}

func (l *logWriter) printf(format string, args ...any) {
	l.write(fmt.Appendf(nil, "%s "+format+"\n", append([]any{time.Now().UTC().Format(time.RFC3339)}, args...)...))
}

// write never fails the unit: a log that cannot be written (disk full) is lost.
func (l *logWriter) write(data []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.size+int64(len(data)) > l.max {
		l.rotate()
	}
	n, _ := l.file.Write(data)
	l.size += int64(n)
}

func (l *logWriter) rotate() {
	if err := os.Rename(l.path, l.path+".1"); err != nil {
		// Bounded even so.
		if l.file.Truncate(0) == nil {
			_, _ = l.file.Seek(0, io.SeekStart)
			l.size = 0
		}
		return
	}
	old := l.file
	if err := l.open(); err != nil {
		l.file, l.size = old, 0
		return
	}
	old.Close()
}
