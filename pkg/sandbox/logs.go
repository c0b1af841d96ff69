package sandbox

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// Console is the name under which Logs knows what a machine's first process
// printed.
const Console = "console"

// Logs lists the logs of a machine: its console, its units, its pods.
func (s *Sandbox) Logs(name string) (map[string]string, error) {
	m, err := s.Machine(name)
	if err != nil {
		return nil, err
	}
	logs := map[string]string{Console: m.Console()}
	var units []string
	for _, suffix := range []string{".log.1", ".log"} {
		found, err := filepath.Glob(filepath.Join(m.Disk(), "var/log/skerry/*"+suffix))
		if err != nil {
			return nil, err
		}
		units = append(units, found...)
	}
	for _, file := range units {
		base := filepath.Base(file)
		if unit, ok := strings.CutSuffix(base, ".log"); ok {
			logs[unit] = file
		} else {
			logs[strings.TrimSuffix(base, ".log.1")+".1"] = file
		}
	}
	pods, err := filepath.Glob(filepath.Join(m.Disk(), "var/log/pods/*/*/*.log"))
	if err != nil {
		return nil, err
	}
	for _, file := range pods {
		dir, base := filepath.Split(file)
		container := filepath.Base(dir)
		pod := filepath.Base(filepath.Dir(filepath.Dir(file)))
		logs["pods/"+pod+"/"+container+"/"+base] = file
	}
	return logs, nil
}

// CollectLogs copies all logs of the sandbox into a folder.
func (s *Sandbox) CollectLogs(to string) error {
	var errs []error
	keep := func(file, as string) {
		if err := copyLog(file, filepath.Join(to, as)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	for _, name := range []string{fabricLog, metaFile, fabricState} {
		keep(filepath.Join(s.dir, name), name)
	}
	own, err := filepath.Glob(filepath.Join(s.LogDir(), "*"))
	if err != nil {
		return err
	}
	for _, file := range own {
		keep(file, filepath.Base(file))
	}
	for _, m := range s.Spec.Machines() {
		logs, err := s.Logs(m.Name)
		if err != nil {
			return err
		}
		for name, file := range logs {
			if !strings.HasSuffix(name, ".log") {
				name += ".log"
			}
			keep(file, filepath.Join(m.Name, name))
		}
	}
	return errors.Join(errs...)
}

func copyLog(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

// keepLogs saves the logs of a sandbox that is about to be removed.
func (s *Sandbox) keepLogs() (string, error) {
	output := filepath.Dir(filepath.Dir(s.dir))
	to := filepath.Join(output, "logs", fmt.Sprintf("sandbox-%s-%s", s.Name(), time.Now().UTC().Format("20060102-150405")))
	return to, s.CollectLogs(to)
}
