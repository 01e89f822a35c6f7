package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/real-rm/chatbox/internal/rig"
)

// A running launcher under test.
type running struct {
	t     *testing.T
	state string
	addr  string
	out   syncBuffer
	end   context.CancelFunc
	done  chan error
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

func launch(t *testing.T, state string, args ...string) *running {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	r := &running{t: t, state: state, addr: loopback(rig.FreePort()), end: cancel, done: make(chan error, 1)}
	args = append([]string{"--addr", r.addr, "--state", state, "--s3=false"}, args...)
	go func() { r.done <- run(ctx, args, func(string) string { return "" }, &r.out) }()
	t.Cleanup(cancel)
	return r
}

// up waits until links.json appears, which says that the chat is up.
func (r *running) up() links {
	r.t.Helper()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	timeout := time.After(8 * time.Minute) // a cold build on two cores
	for {
		data, err := os.ReadFile(filepath.Join(r.state, linksName))
		var l links
		if err == nil && json.Unmarshal(data, &l) == nil {
			return l
		}
		select {
		case err := <-r.done:
			r.t.Fatalf("the launcher ended: %v\n%s", err, r.out.String())
		case <-timeout:
			r.t.Fatalf("not up\n%s", r.out.String())
		case <-tick.C:
		}
	}
}

func (r *running) stop() {
	r.t.Helper()
	r.end()
	if err := <-r.done; err != nil {
		r.t.Fatalf("the launcher ended with %v\n%s", err, r.out.String())
	}
}

func needProduct(t *testing.T) {
	t.Helper()
	root, err := rig.ModuleRoot()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(root, "main.go")); err != nil {
		t.Skip("there is no product binary to launch yet")
	}
	if testing.Short() {
		t.Skip("builds and starts everything; not with -short")
	}
}

func me(t *testing.T, l links) int {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, l.URL+"/chat/me", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+l.Users[0].Token)
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	return res.StatusCode
}

func TestLauncher_startsTheWholeChat_andARestartFindsItsState(t *testing.T) {
	needProduct(t)
	state := t.TempDir()
	r := launch(t, state)
	l := r.up()
	for range 4 { // both replicas
		if status, _, _ := get(t, l.URL+"/chat/healthz"); status != http.StatusOK {
			t.Fatalf("healthz answers %d\n%s", status, r.out.String())
		}
		if status := me(t, l); status != http.StatusOK {
			t.Fatalf("a printed token is answered with %d\n%s", status, r.out.String())
		}
	}
	pids := regexp.MustCompile(`(?s)replica 1 +http://\S+, process \d+\nreplica 2 +http://\S+, process \d+\n.*\nUp after`)
	if out := r.out.String(); !pids.MatchString(out) || strings.Contains(out, "/chat/admin") {
		t.Errorf("output\n%s", out)
	}
	secrets := func() string {
		var all []string
		for _, name := range []string{"jwt_secret", "keyset.json"} {
			data, err := os.ReadFile(filepath.Join(state, name))
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, string(data))
		}
		return strings.Join(all, "\n")
	}
	before := secrets()
	r.stop()
	if conn, err := (&net.Dialer{Timeout: time.Second}).DialContext(t.Context(), "tcp", r.addr); err == nil {
		_ = conn.Close()
		t.Error("something still listens after the end")
	}

	again := launch(t, state)
	again.up()
	if secrets() != before {
		t.Error("the restart made new secrets: old tokens and conversations are unreadable")
	}
	l.URL = "http://" + again.addr
	if status := me(t, l); status != http.StatusOK {
		t.Errorf("a token of the first start is answered with %d after the second", status)
	}
	again.stop()
}

func TestLauncher_aTakenPortGivesOneClearLine(t *testing.T) {
	var lc net.ListenConfig
	ln, err := lc.Listen(t.Context(), "tcp", loopback(rig.FreePort()))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ln.Close() }()
	var out bytes.Buffer
	err = run(t.Context(), []string{"--addr", ln.Addr().String(), "--state", t.TempDir()}, os.Getenv, &out)
	if err == nil || !strings.Contains(err.Error(), "is taken by another program") || strings.Contains(err.Error(), "\n") || out.Len() > 0 {
		t.Errorf("got %v and output %q", err, out.String())
	}
}

func TestLauncher_refusesArgumentsItDoesNotKnow(t *testing.T) {
	for _, args := range [][]string{{"--nonsense"}, {"extra"}, {"--replicas", "0"}, {"--redis", "maybe"}} {
		var out bytes.Buffer
		err := run(t.Context(), args, os.Getenv, &out)
		if err == nil || strings.Contains(err.Error(), "\n") || out.Len() > 0 {
			t.Errorf("%v: %v and output %q, want one line", args, err, out.String())
		}
	}
}

func TestHelp_isNoError(t *testing.T) {
	var out bytes.Buffer
	if err := run(t.Context(), []string{"--help"}, os.Getenv, &out); err != nil || !strings.Contains(out.String(), "go run -C dev .") {
		t.Errorf("%v, %q", err, out.String())
	}
	flags := regexp.MustCompile(`(?m)^  --\w+`).FindAllString(out.String(), -1)
	if got := strings.Join(flags, ""); got != "  --addr  --replicas  --reset  --state  --redis  --s3  --delay" {
		t.Errorf("flags in the order %s", got)
	}
}

func TestService_thatEndsIsReported_startedAgain_andEndsWhenStopped(t *testing.T) {
	lines := make(chan string, 100)
	say := func(part, format string, args ...any) { lines <- part + ": " + fmt.Sprintf(format, args...) }
	dir, marker := t.TempDir(), filepath.Join(t.TempDir(), "second")
	s, err := keep(t.Context(), "thing", time.Second, say, func(ctx context.Context) (*rig.Proc, error) {
		script := `if [ -e "$0" ]; then exec sleep 600; fi; touch "$0"; echo last words; exit 3`
		return rig.Start(ctx, rig.Spec{Name: "thing", Path: "sh", Args: []string{"-c", script, marker}, Dir: dir})
	})
	if err != nil {
		t.Fatal(err)
	}
	if line := <-lines; !strings.Contains(line, "ended by itself (exit status 3: last words)") || !strings.Contains(line, "log: "+dir) || strings.Contains(line, "\n") {
		t.Errorf("report %q", line)
	}
	if line := <-lines; !strings.HasPrefix(line, "thing: runs again, process ") {
		t.Errorf("report %q", line)
	}
	s.stop()
}

func TestService_thatIsKilledIsReportedInOneLineForPeople(t *testing.T) {
	lines := make(chan string, 100)
	say := func(part, format string, args ...any) { lines <- part + ": " + fmt.Sprintf(format, args...) }
	s, err := keep(t.Context(), "thing", time.Second, say, func(ctx context.Context) (*rig.Proc, error) {
		script := `echo '{"msg":"serving"}'; exec sleep 600`
		return rig.Start(ctx, rig.Spec{Name: "thing", Path: "sh", Args: []string{"-c", script}, Dir: t.TempDir()})
	})
	if err != nil {
		t.Fatal(err)
	}
	defer s.stop()
	p, err := os.FindProcess(s.firstPid)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Kill(); err != nil {
		t.Fatal(err)
	}
	line := <-lines
	if want := fmt.Sprintf("thing: process %d was killed (signal: killed); starting again in", s.firstPid); !strings.HasPrefix(line, want) || strings.Contains(line, "{") || strings.Contains(line, "\n") {
		t.Errorf("report %q, want %q", line, want)
	}
}

func TestLauncher_aSecondOneInTheSameCloneIsToldSo(t *testing.T) {
	s := newState(t)
	var lc net.ListenConfig
	ln, err := lc.Listen(t.Context(), "tcp", loopback(rig.FreePort()))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ln.Close() }()
	var out bytes.Buffer
	err = run(t.Context(), []string{"--addr", ln.Addr().String(), "--state", s.dir}, os.Getenv, &out)
	if err == nil || !strings.Contains(err.Error(), "this launcher runs already") || !strings.Contains(err.Error(), "--state") || strings.Contains(err.Error(), "\n") {
		t.Errorf("got %v", err)
	}
}

func TestMiniRedis_lettingTimePass(t *testing.T) {
	var out bytes.Buffer
	l := &launcher{options: options{redis: "mini"}, out: &out}
	addr, err := l.startRedis(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer l.stopAll()
	conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	ask := func(words ...string) string {
		_, _ = fmt.Fprintf(conn, "*%d\r\n", len(words))
		for _, w := range words {
			_, _ = fmt.Fprintf(conn, "$%d\r\n%s\r\n", len(w), w)
		}
		b := make([]byte, 256)
		n, err := conn.Read(b)
		if err != nil {
			t.Fatal(err)
		}
		return string(b[:n])
	}
	ask("SET", "k", "v", "PX", "200")
	for ask("EXISTS", "k") != ":0\r\n" { // the deadline above ends a clock that stands still
	}
}
