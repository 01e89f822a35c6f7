package main

import (
	"bytes"
	"net/smtp"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

func newState(t *testing.T) *state {
	t.Helper()
	s, err := openState(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.close)
	return s
}

func TestState_belongsToOneLauncherAtATime(t *testing.T) {
	s := newState(t)
	if _, err := openState(s.dir); err == nil || !strings.Contains(err.Error(), "another launcher") {
		t.Errorf("second launcher got %v, want a line that says so", err)
	}
}

func TestState_makesASecretOnce_readableByItsOwnerOnly(t *testing.T) {
	s := newState(t)
	first, err := s.once("secret", randomSecret)
	if err != nil {
		t.Fatal(err)
	}
	second, err := s.once("secret", randomSecret)
	if err != nil || !bytes.Equal(first, second) || len(first) != 64 {
		t.Errorf("got %q, then %q, %v", first, second, err)
	}
	info, err := os.Stat(s.path("secret"))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
}

func TestReset_forgetsEverythingButTheLockAndTheBinaries(t *testing.T) {
	s := newState(t)
	for _, dir := range []string{"redis", "ferretdb", "mail"} {
		if err := os.MkdirAll(s.path(dir), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"jwt_secret", "chatbox.toml", "redis/aof", "bin/chatbox", "notes/mine"} {
		if err := os.MkdirAll(filepath.Dir(s.path(name)), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(s.path(name), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.reset(); err != nil {
		t.Fatal(err)
	}
	var left []string
	err := filepath.WalkDir(s.dir, func(path string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			rel, _ := filepath.Rel(s.dir, path)
			left = append(left, filepath.ToSlash(rel))
		}
		return err
	})
	if err != nil || strings.Join(left, " ") != "bin/chatbox launcher.lock notes/mine" {
		t.Errorf("left: %v, %v", left, err)
	}
}

func TestLinks_carrySignedTokensInTheFragment(t *testing.T) {
	secret := []byte("0123456789abcdef0123456789abcdef")
	all, err := makeLinks("http://127.0.0.1:8080", secret, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range append(all.Users, all.Admin) {
		_, fragment, _ := strings.Cut(p.Link, "http://127.0.0.1:8080/chat/#token=")
		if p.ID == all.Admin.ID {
			if fragment = p.Token; p.Link != "" {
				t.Errorf("a link to a page that is not there: %s", p.Link)
			}
		}
		claims := jwt.MapClaims{}
		if _, err := jwt.ParseWithClaims(fragment, claims, func(*jwt.Token) (any, error) { return secret, nil }, jwt.WithValidMethods([]string{"HS256"}), jwt.WithExpirationRequired()); err != nil {
			t.Errorf("token of %s: %v", p.ID, err)
		}
		if claims["sub"] != p.ID || claims["name"] != p.Name {
			t.Errorf("claims %v of %s", claims, p.ID)
		}
	}
}

func TestSettings_quoteWhatTheyAreGiven(t *testing.T) {
	c := settings{redis: "redis://127.0.0.1:1", mongo: "mongodb://127.0.0.1:2", secret: `a"b\c`, keyset: `{"key": [1]}`, models: []model{{"m", "M", "openai", "http://x/v1", "env:KEY", "gpt"}}}
	got := string(c.toml())
	for _, want := range []string{`jwt_secret = "a\"b\\c"`, `keyset = "{\"key\": [1]}"`, "[[chatbox.llm.providers]]\nid = \"m\"", `apiKey = "env:KEY"`} {
		if !strings.Contains(got, want) {
			t.Errorf("no %s in\n%s", want, got)
		}
	}
}

func TestModels_withAKeyInTheEnvironment_theRealOneIsTheDefault_andTheKeyIsNotWritten(t *testing.T) {
	var out bytes.Buffer
	l := &launcher{out: &out, getenv: func(name string) string {
		if name == "OPENAI_API_KEY" {
			return "sk-very-secret"
		}
		return ""
	}}
	models := l.models("127.0.0.1:1")
	if len(models) != 4 || models[0].id != "openai" || models[1].id != "scripted" {
		t.Fatalf("models %v", models)
	}
	for i, kind := range []string{"openai", "anthropic", "dify"} {
		if models[i+1].kind != kind {
			t.Errorf("scripted model %d is %v", i+1, models[i+1])
		}
	}
	if text := string(settings{models: models}.toml()); strings.Contains(text+out.String(), "sk-very-secret") {
		t.Error("the key is written down")
	}
}

func TestMail_becomesAFile(t *testing.T) {
	var out bytes.Buffer
	l := &launcher{out: &out, state: newState(t)}
	t.Cleanup(l.stopAll)
	if err := l.startMail(t.Context()); err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(out.String(), "smtp://")
	addr, _, _ := strings.Cut(rest, ",")
	if err := smtp.SendMail(addr, nil, "a@example.com", []string{"b@example.com"}, []byte("Subject: hello\r\n\r\nbody\r\n")); err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(l.state.path("mail", "*.eml"))
	if err != nil || len(files) != 1 {
		t.Fatalf("files %v, %v", files, err)
	}
	data, err := os.ReadFile(files[0])
	if err != nil || !strings.Contains(string(data), "Subject: hello") {
		t.Errorf("mail %q, %v", data, err)
	}
}
