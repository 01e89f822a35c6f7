// Package fault puts links between processes that tests can cut, stall, slow down, and make lose replies.
//
// A Link is a TCP proxy on 127.0.0.1. What is wrong with it holds for connections that exist and for those that come
// later, until Heal. Several things may be wrong at once. All methods may be called concurrently; Close ends all
// connections and gives the port back.
package fault

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"strconv"
	"sync"
	"time"

	toxiproxy "github.com/Shopify/toxiproxy/v2"
	"github.com/rs/zerolog"

	"github.com/real-rm/chatbox/internal/rig"
)

// Link is a connection between two processes that can fail on request.
type Link struct {
	mu    sync.Mutex // guards the fields below, and orders changes
	proxy *toxiproxy.Proxy
	wrong []string // names of the toxics that are in force
}

// NewLink returns a link to a server (host:port) that works until told otherwise. The server need not be there yet.
func NewLink(target string) (*Link, error) {
	server := toxiproxy.NewServer(toxiproxy.NewMetricsContainer(nil), zerolog.Nop())
	var err error
	for range 3 { // somebody may take the port first
		addr := net.JoinHostPort("127.0.0.1", strconv.Itoa(rig.FreePort()))
		proxy := toxiproxy.NewProxy(server, "link-"+addr, addr, target)
		if err = proxy.Start(); err == nil {
			return &Link{proxy: proxy}, nil
		}
	}
	return nil, fmt.Errorf("link to %s: %w", target, err)
}

// Addr is what to connect to instead of the server: host:port.
func (l *Link) Addr() string { return l.proxy.Listen }

// Cut closes all connections and refuses new ones, as a crashed host's kernel does.
func (l *Link) Cut() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.proxy.Stop()
}

// Swallow keeps connections open and lets nothing through in either direction, as a partition does. What is sent
// meanwhile is lost for good: Heal closes these connections.
func (l *Link) Swallow() error {
	for _, stream := range []string{"upstream", "downstream"} {
		if err := l.add("timeout", stream, map[string]any{"timeout": 0}); err != nil {
			return err
		}
	}
	return nil
}

// LoseReplies lets requests through and closes each connection instead of passing on the first byte of an answer.
func (l *Link) LoseReplies() error {
	return l.add("limit_data", "downstream", map[string]any{"bytes": 0})
}

// Reset resets each connection as soon as something is sent over it, as a host does that has forgotten them all.
func (l *Link) Reset() error {
	return l.add("reset_peer", "upstream", map[string]any{"timeout": 0})
}

// Delay holds every packet up, in both directions, for half of the time each plus or minus up to half of the jitter.
// Order is kept.
func (l *Link) Delay(roundTrip, jitter time.Duration) error {
	for _, stream := range []string{"upstream", "downstream"} {
		if err := l.add("latency", stream, map[string]any{
			"latency": roundTrip.Milliseconds() / 2, "jitter": jitter.Milliseconds() / 2,
		}); err != nil {
			return err
		}
	}
	return nil
}

// Throttle lets so many kilobytes a second through towards the client.
func (l *Link) Throttle(kilobytes int) error {
	return l.add("bandwidth", "downstream", map[string]any{"rate": kilobytes})
}

func (l *Link) add(kind, stream string, attributes map[string]any) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	name := kind + "_" + stream
	b, err := json.Marshal(map[string]any{"name": name, "type": kind, "stream": stream, "attributes": attributes})
	if err != nil {
		return fmt.Errorf("add %s to a link: %w", name, err)
	}
	if _, err := l.proxy.Toxics.AddToxicJson(bytes.NewReader(b)); err != nil {
		return fmt.Errorf("add %s to a link: %w", name, err)
	}
	l.wrong = append(l.wrong, name)
	return nil
}

// Heal makes the link work again. On a link that works it does nothing.
func (l *Link) Heal() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for len(l.wrong) > 0 {
		if err := l.proxy.Toxics.RemoveToxic(context.Background(), l.wrong[0]); err != nil {
			return fmt.Errorf("heal a link: %w", err)
		}
		l.wrong = l.wrong[1:]
	}
	if l.proxy.Enabled {
		return nil
	}
	if err := l.proxy.Start(); err != nil {
		return fmt.Errorf("heal a link: %w", err)
	}
	return nil
}

// Close ends the link.
func (l *Link) Close() { l.Cut() }
