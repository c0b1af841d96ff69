package shown

var (
	pathOfAnswer = []string{"metadata", "resourceVersion"}
	pathOfEvent  = []string{"object", "metadata", "resourceVersion"}
)

// jsonScanner follows one path through JSON values that stand one behind another.
type jsonScanner struct {
	path    []string
	forever bool // another value may follow
	fn      func(uint64)

	depth   int  // of objects and arrays that are open
	matched int  // how many of them, from the outermost, are on the path
	key     bool // in the innermost that is on the path: the next string is a key
	hit     bool // and the key before was the one of the path

	inString, escaped, capture bool
	length                     int
	text                       [24]byte // as long as what is looked for
}

func newJSON(events bool, fn func(uint64)) *jsonScanner {
	if events {
		return &jsonScanner{path: pathOfEvent, forever: true, fn: fn}
	}
	return &jsonScanner{path: pathOfAnswer, fn: fn}
}

func (s *jsonScanner) write(p []byte) bool {
	for i := 0; i < len(p); i++ {
		c := p[i]
		if s.inString {
			switch {
			case s.escaped:
				s.escaped = false
			case c == '\\':
				// Neither a key of the path nor a number has one.
				s.escaped, s.capture = true, false
			case c == '"':
				s.inString = false
				if s.stringEnds() && !s.forever {
					return false
				}
			case s.capture:
				if s.length == len(s.text) {
					s.capture = false
				} else {
					s.text[s.length] = c
					s.length++
				}
			}
			continue
		}
		switch c {
		case '"':
			s.inString, s.length = true, 0
			s.capture = s.matched > 0 && s.depth == s.matched && (s.key || s.hit && s.matched == len(s.path))
		case '{':
			if s.depth == s.matched && (s.depth == 0 || s.hit && s.matched < len(s.path)) {
				s.matched++
				s.key, s.hit = true, false
			}
			s.depth++
		case '[':
			s.depth++
		case '}', ']':
			if s.depth == s.matched && s.matched > 0 {
				s.matched--
				s.key, s.hit = false, false
			}
			if s.depth > 0 {
				s.depth--
			}
			if s.depth == 0 && !s.forever {
				return false
			}
		case ':':
			if s.depth == s.matched {
				s.key = false
			}
		case ',':
			if s.depth == s.matched {
				s.key, s.hit = true, false
			}
		}
	}
	return true
}

// stringEnds looks at a string that has ended; true if it was what is looked for.
func (s *jsonScanner) stringEnds() bool {
	if s.matched == 0 || s.depth != s.matched {
		return false
	}
	text := s.text[:s.length]
	switch {
	case s.key:
		s.hit = s.capture && string(text) == s.path[s.matched-1]
	case s.capture:
		if rv := number(text); rv > 0 {
			s.fn(rv)
		}
		return true
	}
	return false
}
