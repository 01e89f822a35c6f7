package main

import (
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"sync/atomic"
	"time"
)

// newProxy spreads requests and WebSockets over the replicas in turn, with no stickiness, as a balancer in production
// would. A replica that refuses connections or says 503 is passed over.
func newProxy(replicas []string) http.Handler {
	return &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.Out.URL.Scheme = "http"
			r.Out.Host = r.In.Host // same-origin checks compare it
			r.SetXForwarded()
		},
		Transport: &roundRobin{replicas: replicas, next: &http.Transport{
			DialContext:         (&net.Dialer{Timeout: time.Second}).DialContext,
			MaxIdleConnsPerHost: 32,
			DisableCompression:  true,
		}},
		FlushInterval: -1,
		ErrorLog:      log.New(io.Discard, "", 0),
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, _ error) {
			w.Header().Set("Retry-After", "1")
			http.Error(w, "No replica answers yet. The launcher's output says why.", http.StatusBadGateway)
		},
	}
}

// roundRobin is the proxy's transport. It may be used concurrently.
type roundRobin struct {
	replicas []string // host:port
	next     http.RoundTripper
	turn     atomic.Uint64
}

// RoundTrip tries the replicas in turn. A request goes on to the next one only when nothing of it can have had an
// effect: the dial failed, or a GET was refused with 503.
func (t *roundRobin) RoundTrip(r *http.Request) (*http.Response, error) {
	first := t.turn.Add(1) - 1
	var last error
	for i := range uint64(len(t.replicas)) {
		out := r.Clone(r.Context())
		out.URL.Host = t.replicas[(first+i)%uint64(len(t.replicas))]
		res, err := t.next.RoundTrip(out)
		switch {
		case err == nil && (res.StatusCode != http.StatusServiceUnavailable || r.Method != http.MethodGet || i+1 == uint64(len(t.replicas))):
			return res, nil
		case err == nil:
			_ = res.Body.Close()
			last = errors.New("replica answered 503")
		case isDial(err):
			last = err
		default:
			return nil, err
		}
	}
	return nil, last
}

func isDial(err error) bool {
	op, ok := errors.AsType[*net.OpError](err)
	return ok && op.Op == "dial"
}
