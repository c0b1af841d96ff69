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
