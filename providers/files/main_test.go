package files

import (
	"context"
	"crypto/x509"
	"encoding/binary"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"golang.org/x/net/dns/dnsmessage"

	"github.com/real-rm/chatbox/internal/rig"
)

func TestMain(m *testing.M) {
	// A proxy that nothing listens on, set before anybody could have looked for one: whoever used it would get nothing.
	for _, name := range []string{"HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy"} {
		_ = os.Setenv(name, "http://127.0.0.1:1")
	}
	goleak.VerifyTestMain(m)
}

// site is what a Fetcher meets in a test: a server on 127.0.0.2 that plays the open internet, and traps on the same port
// of 127.0.0.1 and ::1, which play the inside of a network and must never be reached.
type site struct {
	port    int
	roots   *x509.CertPool
	traps   []*trap
	names   *names
	fetcher *Fetcher
}

// host is the name of the server that plays the open internet; its certificate is for it.
const host = "example.com"

var (
	outside = netip.MustParseAddr("127.0.0.2")
	inside  = netip.MustParseAddr("127.0.0.1")
)

func newSite(t *testing.T, h http.Handler, change ...func(*FetcherOptions)) *site {
	t.Helper()
	s := &site{names: &names{}}
	var l net.Listener
	for range 20 {
		s.port = rig.FreePort()
		var err error
		if l, err = net.Listen("tcp", s.at(outside.String())); err == nil {
			break
		}
	}
	require.NotNil(t, l, "no port that is free on 127.0.0.1 and 127.0.0.2")
	s.traps = append(s.traps, newTrap(t, s.at(inside.String())))
	if six := newTrap(t, s.at("::1")); six != nil { // machines without IPv6 have nothing to trap there
		s.traps = append(s.traps, six)
	}
	srv := httptest.NewUnstartedServer(h)
	require.NoError(t, srv.Listener.Close())
	srv.Listener = l
	srv.Config.ErrorLog = log.New(io.Discard, "", 0) // refused handshakes are part of the tests
	srv.StartTLS()
	t.Cleanup(srv.Close)
	s.roots = x509.NewCertPool()
	s.roots.AddCert(srv.Certificate())
	o := FetcherOptions{
		Ports: []uint16{uint16(s.port)}, Allow: []netip.Prefix{netip.PrefixFrom(outside, 32)}, Resolver: s.names.resolver(), RootCAs: s.roots,
	}
	for _, f := range change {
		f(&o)
	}
	var err error
	s.fetcher, err = NewFetcher(o)
	require.NoError(t, err)
	return s
}

func (s *site) at(host string) string { return net.JoinHostPort(host, strconv.Itoa(s.port)) }

// url is an address on the server that plays the open internet.
func (s *site) url(path string) string { return "https://" + s.at(host) + path }

// untouched fails the test if a trap was reached.
func (s *site) untouched(t require.TestingT) {
	for _, tr := range s.traps {
		require.Zero(t, tr.reached(t), "connections to %s", tr.addr)
	}
}

// trap counts connections.
type trap struct {
	addr   string
	mu     sync.Mutex
	opened chan string // remote addresses, in the order of arrival
	count  int
}

func newTrap(t *testing.T, addr string) *trap {
	t.Helper()
	l, err := net.Listen("tcp", addr)
	if err != nil {
		require.True(t, strings.HasPrefix(addr, "[::1]"), "%v", err)
		return nil
	}
	tr := &trap{addr: addr, opened: make(chan string, 1000)}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			tr.opened <- c.RemoteAddr().String()
			_ = c.Close()
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		wg.Wait()
	})
	return tr
}

// reached counts the connections so far. Connections are accepted in their order, so one of our own is the last.
func (tr *trap) reached(t require.TestingT) int {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	c, err := net.Dial("tcp", tr.addr)
	require.NoError(t, err)
	defer func() { _ = c.Close() }()
	for remote := range tr.opened {
		if remote == c.LocalAddr().String() {
			break
		}
		tr.count++
	}
	return tr.count
}

// names is a name server. Names that it has no answers for are host, which is outside.
type names struct {
	mu      sync.Mutex
	answers map[string][][]netip.Addr // by name without the dot at the end: one after the other, the last one stays
	asked   []string
}

// say makes a name stand for something, and for something else at each further look.
func (n *names) say(name string, answers ...[]netip.Addr) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.answers == nil {
		n.answers = map[string][][]netip.Addr{}
	}
	n.answers[name] = answers
}

func (n *names) look(q dnsmessage.Question) []netip.Addr {
	n.mu.Lock()
	defer n.mu.Unlock()
	name := strings.TrimSuffix(q.Name.String(), ".")
	n.asked = append(n.asked, name)
	list, known := n.answers[name]
	if !known {
		list = [][]netip.Addr{{outside}}
	}
	var out []netip.Addr
	for _, a := range list[0] {
		if a.Is4() == (q.Type == dnsmessage.TypeA) {
			out = append(out, a)
		}
	}
	if q.Type == dnsmessage.TypeA && len(list) > 1 {
		n.answers[name] = list[1:]
	}
	return out
}

func (n *names) resolver() *net.Resolver {
	return &net.Resolver{PreferGo: true, Dial: func(context.Context, string, string) (net.Conn, error) {
		client, server := net.Pipe()
		go n.serve(server) // ends when the resolver closes its side
		return client, nil
	}}
}

// serve speaks DNS as over TCP: each message has its length before it.
func (n *names) serve(c net.Conn) {
	defer func() { _ = c.Close() }()
	for {
		var size [2]byte
		if _, err := io.ReadFull(c, size[:]); err != nil {
			return
		}
		query := make([]byte, binary.BigEndian.Uint16(size[:]))
		if _, err := io.ReadFull(c, query); err != nil {
			return
		}
		var m dnsmessage.Message
		if m.Unpack(query) != nil || len(m.Questions) != 1 {
			return
		}
		q := m.Questions[0]
		m.Header = dnsmessage.Header{ID: m.ID, Response: true, RecursionAvailable: true, RecursionDesired: true}
		m.Additionals = nil
		for _, a := range n.look(q) {
			r := dnsmessage.Resource{Header: dnsmessage.ResourceHeader{Name: q.Name, Class: q.Class, TTL: 0}}
			if a.Is4() {
				r.Body = &dnsmessage.AResource{A: a.As4()}
			} else {
				r.Body = &dnsmessage.AAAAResource{AAAA: a.As16()}
			}
			m.Answers = append(m.Answers, r)
		}
		packed, err := m.Pack()
		if err != nil {
			return
		}
		if _, err := c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(packed))), packed...)); err != nil {
			return
		}
	}
}

// body answers every request with the same text.
func body(text string, headers ...string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		for i := 0; i+1 < len(headers); i += 2 {
			w.Header().Set(headers[i], headers[i+1])
		}
		_, _ = io.WriteString(w, text)
	})
}
