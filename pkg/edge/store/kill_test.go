package store

import (
	"bufio"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

const childVariable = "SKERRY_STORE_TEST_CHILD"

func TestMain(m *testing.M) {
	if dir := os.Getenv(childVariable); dir != "" {
		if err := writeUntilKilled(dir); err != nil {
			fmt.Println("error", err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

func childOptions(dir string) Options {
	return Options{
		Path: filepath.Join(dir, "store.db"), JournalPath: filepath.Join(dir, "journal"),
		CommitInterval: 3 * time.Millisecond, LazyInterval: 20 * time.Millisecond,
	}
}

// writeUntilKilled goes on with the history where the store has it, and says
// after each step that it is applied.
func writeUntilKilled(dir string) error {
	seed, err := strconv.ParseUint(os.Getenv(childVariable+"_SEED"), 10, 64)
	if err != nil {
		return err
	}
	s, err := Open(childOptions(dir))
	if err != nil {
		return err
	}
	m := after(seed, storedSteps(s))
	for {
		b, d := m.step()
		if err := s.Apply(b, d); err != nil {
			return err
		}
		if _, err := fmt.Println("applied", m.steps); err != nil {
			return err
		}
	}
}

// TestKill kills a writing process at random moments. Whatever it said it had
// applied is there: through the journal, or in the file.
func TestKill(t *testing.T) {
	n, sd := torture(t, 8)
	r := rand.New(rand.NewPCG(sd, 0))
	dir := t.TempDir()
	steps := 0
	for round := range n {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), childVariable+"="+dir, childVariable+"_SEED="+strconv.FormatUint(sd, 10))
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		cmd.Stderr = os.Stderr
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		sc := bufio.NewScanner(out)
		applied := steps
		var timer *time.Timer
		for sc.Scan() {
			text, ok := strings.CutPrefix(sc.Text(), "applied ")
			if !ok {
				t.Errorf("round %d: %s", round, sc.Text())
				continue
			}
			if applied, err = strconv.Atoi(text); err != nil {
				t.Fatal(err)
			}
			if timer == nil {
				timer = time.AfterFunc(time.Duration(r.IntN(60000))*time.Microsecond, func() { _ = cmd.Process.Kill() })
			}
		}
		_ = cmd.Wait()
		if timer == nil {
			t.Fatalf("round %d: the child did nothing", round)
		}
		s, err := Open(childOptions(dir))
		if err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		steps = storedSteps(s)
		if steps != applied && steps != applied+1 {
			t.Errorf("round %d: %d steps were applied, %d are there", round, applied, steps)
		}
		if d := after(sd, steps).differs(s); d != "" {
			t.Errorf("round %d, %d steps: %s", round, steps, d)
		}
		if p := s.Problems(); len(p) > 0 {
			t.Errorf("round %d: %q", round, p)
		}
		if r.IntN(2) == 0 {
			crash(s)
		} else if err := s.Close(); err != nil {
			t.Errorf("round %d: %v", round, err)
		}
		if t.Failed() {
			t.Fatalf("seed %d", sd)
		}
	}
	t.Logf("%d steps", steps)
}
