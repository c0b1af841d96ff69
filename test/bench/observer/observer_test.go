package observer

import (
	"testing"
	"time"
)

// What is counted does not grow with the site, and its control does.
func TestRules(t *testing.T) {
	small, smallBytes, err := rules(t.Context(), 3, 20*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	large, largeBytes, err := rules(t.Context(), 40, 20*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	if small < 1 || large > 1.1*small || smallBytes < 10 || largeBytes > 1.1*smallBytes {
		t.Errorf("%f messages and %f bytes among 3, %f and %f among 40", small, smallBytes, large, largeBytes)
	}
	if few, _ := everybody(3); few != 4 {
		t.Errorf("3 that ask each other send %f a second each", few)
	}
}

// What is wanted does not depend on what was measured.
func TestGoal(t *testing.T) {
	for size, want := range map[int]float64{2: 1, 3: 1, 5: 1, 10: 1, 30: 1. / 3, 1000: 0.01} {
		if got := goal(size); got != want {
			t.Errorf("a site of %d: %f, want %f", size, got, want)
		}
	}
}
