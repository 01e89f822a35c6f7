package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/real-rm/chatbox/internal/rig"
)

func newReplica(t *testing.T, name string, status int) string {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Host", r.Host)
		w.WriteHeader(status)
		_, _ = io.WriteString(w, name)
	}))
	t.Cleanup(s.Close)
	return strings.TrimPrefix(s.URL, "http://")
}

func newFront(t *testing.T, replicas ...string) *httptest.Server {
	t.Helper()
	s := httptest.NewServer(newProxy(replicas))
	t.Cleanup(s.Close)
	return s
}

func get(t *testing.T, url string) (status int, body string, header http.Header) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	data, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, string(data), res.Header
}

func TestProxy_spreadsRequestsInTurn_andKeepsTheHost(t *testing.T) {
	front := newFront(t, newReplica(t, "a", 200), newReplica(t, "b", 200))
	var got []string
	for range 4 {
		_, body, header := get(t, front.URL)
		got = append(got, body)
		if want := strings.TrimPrefix(front.URL, "http://"); header.Get("X-Host") != want {
			t.Errorf("the replica saw host %q, want %q", header.Get("X-Host"), want)
		}
	}
	if strings.Join(got, "") != "abab" {
		t.Errorf("answered by %v, want a b a b", got)
	}
}

func TestProxy_passesOverReplicasThatAreDownOrUnavailable(t *testing.T) {
	nobody := loopback(rig.FreePort())
	front := newFront(t, nobody, newReplica(t, "draining", 503), newReplica(t, "ok", 200))
	for range 6 {
		if status, body, _ := get(t, front.URL); status != 200 || body != "ok" {
			t.Fatalf("answer %d %q, want 200 from the one that is up", status, body)
		}
	}
}

func TestProxy_withNoReplica_answersBadGateway(t *testing.T) {
	front := newFront(t, loopback(rig.FreePort()))
	if status, _, _ := get(t, front.URL); status != http.StatusBadGateway {
		t.Errorf("status %d, want 502", status)
	}
}

func TestProxy_carriesAnUpgradedConnectionBothWays(t *testing.T) {
	echo := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Connection", "Upgrade")
		w.Header().Set("Upgrade", r.Header.Get("Upgrade"))
		w.WriteHeader(http.StatusSwitchingProtocols)
		conn, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer func() { _ = conn.Close() }()
		line, _ := rw.ReadString('\n')
		_, _ = io.WriteString(conn, "echo "+line)
	}))
	t.Cleanup(echo.Close)
	front := newFront(t, strings.TrimPrefix(echo.URL, "http://"))

	conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", strings.TrimPrefix(front.URL, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	stop := context.AfterFunc(t.Context(), func() { _ = conn.Close() })
	defer stop()
	_, _ = fmt.Fprint(conn, "GET /chat/ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
	r := bufio.NewReader(conn)
	res, err := http.ReadResponse(r, nil)
	if err != nil || res.StatusCode != http.StatusSwitchingProtocols {
		t.Fatalf("upgrade: %v, %v", res, err)
	}
	_, _ = fmt.Fprint(conn, "hello\n")
	if line, err := r.ReadString('\n'); err != nil || line != "echo hello\n" {
		t.Errorf("got %q, %v", line, err)
	}
}
