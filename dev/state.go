package main

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

const (
	lockName  = "launcher.lock" // also the mark by which --reset knows a state directory
	linksName = "links.json"
	tokenLife = 30 * 24 * time.Hour

	drainTimeout = 5 * time.Second // in production 45 s; here somebody waits at a terminal
)

// A state is the directory of everything that survives a restart. One launcher at a time has it.
type state struct {
	dir  string
	lock *os.File
}

// openState makes the directory if need be and locks it. The kernel gives the lock back if the launcher dies.
func openState(dir string) (*state, error) {
	if err := os.MkdirAll(filepath.Join(dir, "bin"), 0o700); err != nil {
		return nil, fmt.Errorf("make state directory: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(dir, lockName), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock state: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		_ = f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("another launcher runs on %s; stop it, or choose another directory with --state", dir)
		}
		return nil, fmt.Errorf("lock state: %w", err)
	}
	s := &state{dir: dir, lock: f}
	if err := s.tidy(); err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

// heldState says whether a launcher has this directory right now. It makes nothing.
func heldState(dir string) bool {
	f, err := os.Open(filepath.Join(dir, lockName))
	if err != nil {
		return false
	}
	defer func() { _ = f.Close() }() // gives the lock back
	return errors.Is(syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB), syscall.EWOULDBLOCK)
}

// tidy makes room for this run's logs, keeping those of the last one, and takes away what a killed launcher left.
func (s *state) tidy() error {
	if err := os.RemoveAll(s.path("logs.old")); err != nil {
		return fmt.Errorf("remove old logs: %w", err)
	}
	if err := os.Rename(s.path("logs"), s.path("logs.old")); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("keep the last logs: %w", err)
	}
	if err := os.Mkdir(s.path("logs"), 0o700); err != nil {
		return fmt.Errorf("make log directory: %w", err)
	}
	if err := os.Remove(s.path(linksName)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove old links: %w", err)
	}
	return nil
}

// reset forgets everything but the lock and the binaries. It touches only a directory that openState made.
func (s *state) reset() error {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return fmt.Errorf("reset state: %w", err)
	}
	for _, name := range []string{"redis", "ferretdb", "s3", "mail", "logs", "logs.old"} {
		if err := os.RemoveAll(s.path(name)); err != nil {
			return fmt.Errorf("reset state: %w", err)
		}
	}
	for _, e := range entries {
		if e.IsDir() || e.Name() == lockName {
			continue
		}
		if err := os.Remove(s.path(e.Name())); err != nil {
			return fmt.Errorf("reset state: %w", err)
		}
	}
	return os.MkdirAll(s.path("logs"), 0o700)
}

func (s *state) path(elem ...string) string {
	return filepath.Join(append([]string{s.dir}, elem...)...)
}

func (s *state) close() {
	_ = os.Remove(s.path(linksName))
	_ = s.lock.Close()
}

// once returns what is stored under name, which it makes the first time. The file is readable by its owner only.
func (s *state) once(name string, generate func() ([]byte, error)) ([]byte, error) {
	data, err := os.ReadFile(s.path(name))
	if err == nil || !errors.Is(err, os.ErrNotExist) {
		return data, err
	}
	if data, err = generate(); err != nil {
		return nil, fmt.Errorf("make %s: %w", name, err)
	}
	return data, s.write(name, data)
}

// write replaces a file as a whole: a launcher that dies in the middle leaves the old one.
func (s *state) write(name string, data []byte) error {
	tmp := s.path(name + ".new")
	if err := os.WriteFile(tmp, data, 0o600); err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	if err := os.Rename(tmp, s.path(name)); err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	return nil
}

// randomSecret is 32 random bytes in hex: as long as HS256's hash asks for, and no placeholder.
func randomSecret() ([]byte, error) {
	b := make([]byte, 32)
	if _, err := rand.Read(b); err != nil {
		return nil, err
	}
	return []byte(hex.EncodeToString(b)), nil
}

// A person can be signed in with one click.
type person struct {
	ID    string   `json:"id"`
	Name  string   `json:"name"`
	Roles []string `json:"roles,omitempty"`
	Token string   `json:"token"`
	Link  string   `json:"link,omitempty"` // empty where there is no page for them
}

// links is what the launcher prints and, for scripts, writes to links.json while it is up.
type links struct {
	URL   string   `json:"url"`
	Users []person `json:"users"`
	Admin person   `json:"admin"`
}

// makeLinks signs a token for two users and an admin. A token is in the fragment, which browsers never send. The
// admin has a token but no link: there is no page for the staff yet.
func makeLinks(url string, secret []byte, now time.Time) (links, error) {
	l := links{URL: url, Users: []person{{ID: "ada", Name: "Ada"}, {ID: "ben", Name: "Ben"}}, Admin: person{ID: "chris", Name: "Chris", Roles: []string{"admin"}}}
	sign := func(p *person) error {
		claims := jwt.MapClaims{"sub": p.ID, "name": p.Name, "roles": p.Roles, "iat": now.Unix(), "exp": now.Add(tokenLife).Unix()}
		if p.Roles == nil {
			claims["roles"] = []string{}
		}
		token, err := jwt.NewWithClaims(jwt.SigningMethodHS256, claims).SignedString(secret)
		if err != nil {
			return fmt.Errorf("sign a token for %s: %w", p.ID, err)
		}
		p.Token = token
		return nil
	}
	errs := []error{sign(&l.Admin)}
	for i := range l.Users {
		u := &l.Users[i]
		errs = append(errs, sign(u))
		u.Link = url + "/chat/#token=" + u.Token
	}
	return l, errors.Join(errs...)
}

// writeLinks makes links.json appear, which says that the chat is up.
func (s *state) writeLinks(l links) error {
	data, err := json.MarshalIndent(l, "", "  ")
	if err != nil {
		return fmt.Errorf("encode links: %w", err)
	}
	return s.write(linksName, append(data, '\n'))
}

// A model is one entry of the providers in the replicas' settings.
type model struct{ id, name, kind, endpoint, key, model string }

// settings is what chatbox.toml is made from.
type settings struct {
	redis, mongo, secret, keyset string
	models                       []model // the first is the default
}

// toml writes the replicas' settings. Strings are quoted as JSON, which TOML's basic strings accept.
func (c settings) toml() []byte {
	var b strings.Builder
	line := func(format string, args ...string) {
		quoted := make([]any, len(args))
		for i, a := range args {
			q, _ := json.Marshal(a) // a string always encodes
			quoted[i] = string(q)
		}
		_, _ = fmt.Fprintf(&b, format+"\n", quoted...)
	}
	line("# Written by the dev launcher at every start. For settings of your own, see --config of chatbox serve.")
	line("[redis]\nurl = %s\n", c.redis)
	line("[dbs.chat]\nuri = %s\n", c.mongo)
	line("[cluster]\ndrain_timeout = %s\n", drainTimeout.String())
	line("[encryption]\nkeyset = %s\n", c.keyset)
	line("[chatbox]\njwt_secret = %s", c.secret)
	for _, m := range c.models {
		line("\n[[chatbox.llm.providers]]\nid = %s\nname = %s\ntype = %s\nendpoint = %s\napiKey = %s\nmodel = %s", m.id, m.name, m.kind, m.endpoint, m.key, m.model)
	}
	return []byte(b.String())
}
