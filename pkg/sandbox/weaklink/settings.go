package weaklink

import (
	"encoding/json"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// Settings say how bad one direction of a link is. The zero value is a perfect
// link.
type Settings struct {
	// Cut drops every packet, silently, as a cable that lies on the floor does.
	Cut bool `json:"cut,omitempty"`
	// Delay is how long every packet takes.
	Delay Duration `json:"delay,omitempty"`
	// Jitter spreads the delay evenly over Delay±Jitter (never below zero).
	// Packets keep their order unless Reorder is set.
	Jitter Duration `json:"jitter,omitempty"`
	// Reorder lets a packet that drew a short delay overtake others.
	Reorder bool `json:"reorder,omitempty"`
	// Loss is the share of packets dropped, each one independent of the others.
	Loss Percent `json:"loss,omitempty"`
	// Rate bounds the throughput. What does not fit waits in a queue of
	// QueueTime (at least minQueue bytes); what does not fit there is dropped.
	Rate Rate `json:"rate,omitempty"`
}

// Perfect reports whether packets pass untouched.
func (s Settings) Perfect() bool { return s == Settings{} }

// Validate says what no link can be.
func (s Settings) Validate() error {
	switch {
	case s.Delay < 0 || time.Duration(s.Delay) > maxDelay:
		return fmt.Errorf("delay: %s is not between 0 and %s", s.Delay, maxDelay)
	case s.Jitter < 0 || time.Duration(s.Jitter) > maxDelay:
		return fmt.Errorf("jitter: %s is not between 0 and %s", s.Jitter, maxDelay)
	case math.IsNaN(float64(s.Loss)) || s.Loss < 0 || s.Loss > 100:
		return fmt.Errorf("loss: %s is not between 0%% and 100%%", s.Loss)
	case s.Rate < 0 || (s.Rate > 0 && s.Rate < minRate):
		return fmt.Errorf("rate: %s is below %s (use cut for no traffic at all)", s.Rate, Rate(minRate))
	}
	return nil
}

// String writes the settings as the options that make them: "delay 100ms loss
// 10%", or "perfect".
func (s Settings) String() string {
	var words []string
	if s.Cut {
		words = append(words, "cut")
	}
	if s.Delay > 0 {
		words = append(words, "delay "+s.Delay.String())
	}
	if s.Jitter > 0 {
		words = append(words, "jitter "+s.Jitter.String())
	}
	if s.Reorder {
		words = append(words, "reorder")
	}
	if s.Loss > 0 {
		words = append(words, "loss "+s.Loss.String())
	}
	if s.Rate > 0 {
		words = append(words, "rate "+s.Rate.String())
	}
	if len(words) == 0 {
		return "perfect"
	}
	return strings.Join(words, " ")
}

// Duration is a time.Duration written as "100ms".
type Duration time.Duration

func (d Duration) String() string { return time.Duration(d).String() }

// Type names the value in --help.
func (d *Duration) Type() string { return "duration" }

// Set parses "100ms".
func (d *Duration) Set(text string) error {
	v, err := time.ParseDuration(text)
	if err != nil {
		return fmt.Errorf("%q is not a duration; write for example 100ms or 1.5s", text)
	}
	*d = Duration(v)
	return nil
}

// MarshalJSON writes the duration as a string.
func (d Duration) MarshalJSON() ([]byte, error) { return json.Marshal(d.String()) }

// UnmarshalJSON reads what MarshalJSON writes.
func (d *Duration) UnmarshalJSON(data []byte) error { return unmarshalText(data, d.Set) }

// Percent is a share of a hundred, written as "10%".
type Percent float64

func (p Percent) String() string { return strconv.FormatFloat(float64(p), 'f', -1, 64) + "%" }

// Type names the value in --help.
func (p *Percent) Type() string { return "percent" }

// Set parses "10%" and "10".
func (p *Percent) Set(text string) error {
	v, err := strconv.ParseFloat(strings.TrimSuffix(text, "%"), 64)
	if err != nil || math.IsNaN(v) || v < 0 || v > 100 {
		return fmt.Errorf("%q is not a share between 0%% and 100%%", text)
	}
	*p = Percent(v)
	return nil
}

// MarshalJSON writes the share as a string.
func (p Percent) MarshalJSON() ([]byte, error) { return json.Marshal(p.String()) }

// UnmarshalJSON reads what MarshalJSON writes.
func (p *Percent) UnmarshalJSON(data []byte) error { return unmarshalText(data, p.Set) }

// Rate is a number of bits a second, written as "2mbit".
type Rate int64

// From big to small; the empty unit stands for plain bits.
var rateUnits = []struct {
	name string
	bits float64
}{{"gbit", 1e9}, {"mbit", 1e6}, {"kbit", 1e3}, {"bit", 1}}

func (r Rate) String() string {
	for _, u := range rateUnits {
		if unit := int64(u.bits); int64(r) >= unit && int64(r)%unit == 0 {
			return strconv.FormatInt(int64(r)/unit, 10) + u.name
		}
	}
	return strconv.FormatInt(int64(r), 10) + "bit"
}

// Type names the value in --help.
func (r *Rate) Type() string { return "rate" }

// Set parses "2mbit", "1.5mbit", "64kbit" and plain bits a second.
func (r *Rate) Set(text string) error {
	number, factor := strings.ToLower(text), 1.0
	for _, u := range rateUnits {
		if rest, ok := strings.CutSuffix(number, u.name); ok {
			number, factor = rest, u.bits
			break
		}
	}
	v, err := strconv.ParseFloat(number, 64)
	if err != nil || math.IsNaN(v) || v < 0 || v*factor > 1e12 {
		return fmt.Errorf("%q is not a rate in bits a second; write for example 64kbit, 2mbit or 1gbit", text)
	}
	*r = Rate(v * factor)
	return nil
}

// MarshalJSON writes the rate as a string.
func (r Rate) MarshalJSON() ([]byte, error) { return json.Marshal(r.String()) }

// UnmarshalJSON reads what MarshalJSON writes.
func (r *Rate) UnmarshalJSON(data []byte) error { return unmarshalText(data, r.Set) }

func unmarshalText(data []byte, set func(string) error) error {
	var text string
	if err := json.Unmarshal(data, &text); err != nil {
		// A bare number: 10 for 10%, 2000 for bits a second.
		text = string(data)
	}
	return set(text)
}
