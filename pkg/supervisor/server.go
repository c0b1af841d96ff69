package supervisor

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
)

// Config says where a server keeps things. Empty fields have the values of a
// sandbox machine.
type Config struct {
	Socket   string    // DefaultSocket
	UnitDir  string    // /etc/skerry/units
	LogDir   string    // /var/log/skerry
	Log      io.Writer // what the server itself has to say
	MinDelay time.Duration
	MaxDelay time.Duration
	// StopTimeout is how long a unit may take to end when asked.
	StopTimeout time.Duration
}

// Server starts units and keeps them running.
type Server struct {
	config Config
	log    *log.Logger
	reaper *reaper
	api    *api

	// One install or remove at a time: each changes the file and the map.
	changing sync.Mutex

	mu    sync.Mutex
	units map[string]*service
}

// NewServer reads the installed units and opens the socket.
func NewServer(c Config) (*Server, error) {
	c.Socket = cmp.Or(c.Socket, DefaultSocket)
	c.UnitDir = cmp.Or(c.UnitDir, "/etc/skerry/units")
	c.LogDir = cmp.Or(c.LogDir, "/var/log/skerry")
	c.MinDelay = cmp.Or(c.MinDelay, time.Second)
	c.MaxDelay = cmp.Or(c.MaxDelay, 10*time.Second)
	c.StopTimeout = cmp.Or(c.StopTimeout, 30*time.Second)
	if c.Log == nil {
		c.Log = io.Discard
	}
	s := &Server{config: c, log: log.New(c.Log, "supervisor: ", log.LstdFlags|log.LUTC), reaper: newReaper(), units: map[string]*service{}}
	for _, dir := range []string{c.UnitDir, c.LogDir, filepath.Dir(c.Socket)} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, err
		}
	}
	if err := s.load(); err != nil {
		return nil, err
	}
	var err error
	s.api, err = listen(c.Socket, s)
	return s, err
}

// Run starts all units and serves until ctx ends; then it stops them.
func (s *Server) Run(ctx context.Context) error {
	// The reaper outlives ctx: stopping units needs it.
	stopReaper := s.reaper.run()
	defer stopReaper()
	s.mu.Lock()
	order := bootOrder(s.units)
	s.mu.Unlock()
	go func() {
		for _, u := range order {
			_ = u.start() // it is in the unit's log and status, and tried again
		}
	}()
	err := s.api.serve(ctx)

	s.mu.Lock()
	defer s.mu.Unlock()
	var wg sync.WaitGroup
	for _, u := range s.units {
		wg.Go(func() { _ = u.stop() })
	}
	wg.Wait()
	return err
}

// load reads the unit files. One that cannot be read is left out and reported:
// a machine with one bad file must still boot.
func (s *Server) load() error {
	files, err := filepath.Glob(filepath.Join(s.config.UnitDir, "*.json"))
	if err != nil {
		return err
	}
	for _, file := range files {
		u, err := readUnit(file)
		if err != nil {
			s.log.Printf("leaving out a unit: %v", err)
			continue
		}
		s.units[u.Name] = s.newService(u)
	}
	return nil
}

func readUnit(file string) (Unit, error) {
	var u Unit
	f, err := os.Open(file)
	if err != nil {
		return u, err
	}
	defer f.Close()
	if err := json.NewDecoder(io.LimitReader(f, maxUnitSize)).Decode(&u); err != nil {
		return u, fmt.Errorf("reading %s: %w", file, err)
	}
	if err := u.Validate(); err != nil {
		return u, fmt.Errorf("reading %s: %w", file, err)
	}
	if want := u.Name + ".json"; filepath.Base(file) != want {
		return u, fmt.Errorf("reading %s: the unit in it belongs into %s", file, want)
	}
	return u, nil
}

// bootOrder sorts by name, each unit behind those it names in After. A circle
// is cut where it is found.
func bootOrder(units map[string]*service) []*service {
	var order []*service
	seen := map[string]bool{}
	var visit func(name string)
	visit = func(name string) {
		u, ok := units[name]
		if !ok || seen[name] {
			return
		}
		seen[name] = true
		for _, before := range u.unit.After {
			visit(before)
		}
		order = append(order, u)
	}
	names := make([]string, 0, len(units))
	for name := range units {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		visit(name)
	}
	return order
}

// errNoUnit is answered for names that are not installed.
var errNoUnit = errors.New("no such unit")

func (s *Server) find(name string) (*service, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	u, ok := s.units[name]
	if !ok {
		names := make([]string, 0, len(s.units))
		for n := range s.units {
			names = append(names, n)
		}
		slices.Sort(names)
		return nil, fmt.Errorf("%w: %q; installed are: %s", errNoUnit, name, cmp.Or(strings.Join(names, ", "), "none"))
	}
	return u, nil
}

// install writes the unit's file. A running unit goes on as it is until it is
// restarted.
func (s *Server) install(u Unit) error {
	if err := u.Validate(); err != nil {
		return err
	}
	data, err := json.MarshalIndent(u, "", "  ")
	if err != nil {
		return err
	}
	// As it will be read at the next boot.
	if len(data) > maxUnitSize {
		return fmt.Errorf("unit %q has %d bytes as a file; at most %d are read", u.Name, len(data), maxUnitSize)
	}
	s.changing.Lock()
	defer s.changing.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	file := filepath.Join(s.config.UnitDir, u.Name+".json")
	// Whole or not at all, also when the power goes.
	if err := writeAtomic(file, append(data, '\n')); err != nil {
		return fmt.Errorf("writing unit %q: %w", u.Name, err)
	}
	if old, ok := s.units[u.Name]; ok {
		old.redefine(u)
		return nil
	}
	s.units[u.Name] = s.newService(u)
	return nil
}

// remove stops the unit and forgets it.
func (s *Server) remove(name string) error {
	s.changing.Lock()
	defer s.changing.Unlock()
	u, err := s.find(name)
	if errors.Is(err, errNoUnit) {
		return nil
	}
	if err := u.stop(); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.units, name)
	if err := os.Remove(filepath.Join(s.config.UnitDir, name+".json")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("removing unit %q: %w", name, err)
	}
	return nil
}

func writeAtomic(file string, data []byte) error {
	tmp, err := os.CreateTemp(filepath.Dir(file), ".new-*")
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name())
	_, err = tmp.Write(data)
	if err == nil {
		err = tmp.Sync()
	}
	if closeErr := tmp.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return err
	}
	return os.Rename(tmp.Name(), file)
}
