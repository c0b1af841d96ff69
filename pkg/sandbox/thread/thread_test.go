package thread

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Many at once, so that some start on the main thread.
func TestThreadsAreNeverReusedNorTheMainOne(t *testing.T) {
	var mu sync.Mutex
	var tids []int
	var wg sync.WaitGroup
	for range 200 {
		wg.Go(func() {
			err := Throwaway(func() error {
				mu.Lock()
				defer mu.Unlock()
				tids = append(tids, unix.Gettid())
				return nil
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for _, tid := range tids {
		if tid == os.Getpid() {
			t.Fatal("ran on the main thread, which never ends")
		}
		deadline := time.Now().Add(10 * time.Second)
		for _, err := os.Stat(fmt.Sprintf("/proc/self/task/%d", tid)); err == nil; _, err = os.Stat(fmt.Sprintf("/proc/self/task/%d", tid)) {
			if time.Now().After(deadline) {
				t.Fatalf("thread %d is still there", tid)
			}
			time.Sleep(time.Millisecond)
		}
	}
}

func TestErrorIsReturned(t *testing.T) {
	want := errors.New("x")
	if err := Throwaway(func() error { return want }); !errors.Is(err, want) {
		t.Errorf("got %v", err)
	}
}
