package config

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/real-rm/chatbox/sessionstore/seal"
)

// Names of what dev mode keeps in its state directory.
const (
	devKeysetFile = "keyset"
	devSecretFile = "jwt_secret"
)

// finish fills in what depends on other settings or on the machine.
func (l *loader) finish(s *Settings) {
	l.keyset(s)
	if s.Dev {
		l.dev(s)
	}
	if s.Cluster.ReplicaID == "" {
		s.Cluster.ReplicaID = replicaID()
		l.sources["cluster.replica_id"] = "made for this run"
	}
	if m := s.Mail.AdminEmail; m != "" && !slices.Contains(s.Notification.AdminEmails, m) {
		s.Notification.AdminEmails = append(s.Notification.AdminEmails, m)
	}
	for i := range s.Chatbox.LLM.Providers {
		s.Chatbox.LLM.Providers[i].inherit(&s.Chatbox.LLM)
	}
}

// keyset reads encryption.keyset_file.
func (l *loader) keyset(s *Settings) {
	const key = "encryption.keyset_file"
	switch path := s.Encryption.KeysetFile; {
	case path == "":
	case s.Encryption.Keyset.Set():
		l.fail(key, fmt.Errorf("encryption.keyset (%s) is set too: keep one of them",
			sourceOf(l.sources, "encryption.keyset")))
	default:
		value, err := readValue(path)
		if err != nil {
			l.fail(key, fmt.Errorf("read keyset: %w", err))
			return
		}
		s.Encryption.Keyset = NewSecret(value)
		l.sources["encryption.keyset"] = path
	}
}

// dev gives a laptop what an operator would have to configure.
func (l *loader) dev(s *Settings) {
	const source = "dev mode"
	if !s.Redis.URL.Set() {
		s.Redis.URL = NewSecret("redis://127.0.0.1:6379")
		l.sources["redis.url"] = source
	}
	if !s.Dbs.Chat.URI.Set() {
		s.Dbs.Chat.URI = NewSecret("mongodb://127.0.0.1:27017")
		l.sources["dbs.chat.uri"] = source
	}
	dir := l.opts.DevState
	if dir == "" {
		dir = defaultStateDir
	}
	for _, kept := range []struct {
		key, file string
		secret    *Secret
		make      func() (string, error)
	}{
		{"encryption.keyset", devKeysetFile, &s.Encryption.Keyset, seal.NewKeyset},
		{"chatbox.jwt_secret", devSecretFile, &s.Chatbox.JWTSecret, randomSecret},
	} {
		if kept.secret.Set() || kept.key == "encryption.keyset" && s.Encryption.KeysetFile != "" {
			continue
		}
		path := filepath.Join(dir, kept.file)
		value, err := keep(path, kept.make)
		if err != nil {
			l.failAt(kept.key, source, err)
			continue
		}
		*kept.secret = NewSecret(value)
		l.sources[kept.key] = path
	}
}

// keep returns the content of a file, which it makes first if need be. Several processes may do so at a time and
// all get the same: the file appears complete or not at all, and the first one stays.
func keep(path string, content func() (string, error)) (string, error) {
	value, err := readValue(path)
	switch {
	case err == nil && value == "":
		return "", fmt.Errorf("%s is empty: remove it", path)
	case !errors.Is(err, fs.ErrNotExist):
		return value, err
	}
	if value, err = content(); err != nil {
		return "", err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return "", fmt.Errorf("make state directory: %w", err)
	}
	tmp, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".new-*") // mode 0600
	if err != nil {
		return "", fmt.Errorf("keep secret: %w", err)
	}
	defer func() { _ = os.Remove(tmp.Name()) }()
	_, err = tmp.WriteString(value + "\n")
	if err := errors.Join(err, tmp.Sync(), tmp.Close()); err != nil {
		return "", fmt.Errorf("keep secret: %w", err)
	}
	if err := os.Link(tmp.Name(), path); err != nil && !errors.Is(err, fs.ErrExist) {
		return "", fmt.Errorf("keep secret: %w", err)
	}
	return readValue(path)
}

func randomSecret() (string, error) {
	b := make([]byte, 32)
	if _, err := rand.Read(b); err != nil {
		return "", fmt.Errorf("make secret: %w", err)
	}
	return hex.EncodeToString(b), nil
}

// replicaID is unique with near certainty, and shows the pod's name to people.
func replicaID() string {
	host, err := os.Hostname()
	if err != nil || host == "" {
		host = "replica"
	}
	host = strings.Map(func(r rune) rune {
		if replicaRune(r) {
			return r
		}
		return '-'
	}, host)
	b := make([]byte, 4)
	_, _ = rand.Read(b) // never fails: crypto/rand ends the process instead
	return host[:min(len(host), maxReplicaID-9)] + "-" + hex.EncodeToString(b)
}

// inherit fills what a provider leaves to its table.
func (p *Provider) inherit(t *LLM) {
	if p.Name == "" {
		p.Name = p.ID
	}
	orElse(&p.ConnectTimeout, t.ConnectTimeout)
	orElse(&p.FirstTokenTimeout, t.FirstTokenTimeout)
	orElse(&p.IdleTimeout, t.IdleTimeout)
	orElse(&p.TotalTimeout, t.TotalTimeout)
	orElse(&p.ContextTokens, t.ContextTokens)
	orElse(&p.MaxOutput, t.MaxOutput)
	orElse(&p.SystemPrompt, t.SystemPrompt)
}

func orElse[T comparable](v *T, other T) {
	var zero T
	if *v == zero {
		*v = other
	}
}
