package files

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"mime"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"code.dny.dev/ssrf"
)

// Defaults of FetcherOptions.
const (
	defaultRedirects  = 2
	defaultFetchTime  = 10 * time.Second
	defaultFetchBytes = 25 << 20
)

// FetcherOptions bound what a Fetcher does. Zero values are the defaults.
type FetcherOptions struct {
	// Ports that are connected to. Empty: 443.
	Ports []uint16
	// Redirects that are followed, each after the same checks as the address itself. 0: 2. Below 0: none.
	Redirects int
	// Timeout for a whole file, from looking up its name to its last byte. 0: 10 s.
	Timeout time.Duration
	// MaxBytes of a file. 0: 25 MiB.
	MaxBytes int64

	// Allow are ranges that may be connected to although they are not on the open internet. For tests.
	Allow []netip.Prefix
	// Resolver looks names up. nil: the system's. For tests.
	Resolver *net.Resolver
	// RootCAs vouch for servers. nil: the system's. For tests.
	RootCAs *x509.CertPool
}

// Fetcher reads files at addresses that nobody vouches for. It keeps no connection and no cookie.
type Fetcher struct {
	guard    guard
	client   *http.Client
	timeout  time.Duration
	maxBytes int64
}

// Fetched is a file under way. Body must be closed; its errors are those of Fetch.
type Fetched struct {
	Name string // for people, from the server's answer or the address, with nothing in it that does not show
	MIME string // by the content
	Size int64  // as announced; -1: unknown
	Body io.ReadCloser
}

// NewFetcher returns a Fetcher.
func NewFetcher(o FetcherOptions) (*Fetcher, error) {
	var problems []error
	if o.Timeout < 0 {
		problems = append(problems, errors.New("fetch foreign files: timeout is negative"))
	}
	if o.MaxBytes < 0 {
		problems = append(problems, errors.New("fetch foreign files: limit in bytes is negative"))
	}
	if err := errors.Join(problems...); err != nil {
		return nil, err
	}
	if len(o.Ports) == 0 {
		o.Ports = []uint16{httpsPort}
	}
	if o.Redirects == 0 {
		o.Redirects = defaultRedirects
	}
	if o.Timeout == 0 {
		o.Timeout = defaultFetchTime
	}
	if o.MaxBytes == 0 {
		o.MaxBytes = defaultFetchBytes
	}
	f := &Fetcher{guard: newGuard(o.Ports, o.Allow), timeout: o.Timeout, maxBytes: o.MaxBytes}
	f.client = &http.Client{Transport: f.transport(o), CheckRedirect: f.redirect(max(o.Redirects, 0))}
	return f, nil
}

// transport opens a connection for each request, and only to where the guard lets it. The guard sees the address
// that the connection really goes to, so a name that stands for something else at every look changes nothing.
func (f *Fetcher) transport(o FetcherOptions) *http.Transport {
	dialer := &net.Dialer{Timeout: o.Timeout, Resolver: o.Resolver, Control: f.guard.ranges.Safe, KeepAlive: -1}
	return &http.Transport{
		Proxy: nil, // one would connect in our place, to anywhere
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			return dialer.DialContext(ctx, network, rooted(address))
		},
		TLSClientConfig:        &tls.Config{RootCAs: o.RootCAs, MinVersion: tls.VersionTLS12},
		TLSHandshakeTimeout:    o.Timeout,
		DisableKeepAlives:      true,
		DisableCompression:     true, // a small body must not unpack to a large one
		MaxResponseHeaderBytes: 64 << 10,
	}
}

// rooted puts a dot behind a name, so that it is looked up as it is, and not first below the domains of the cluster.
func rooted(address string) string {
	host, port, err := net.SplitHostPort(address)
	if err != nil || net.ParseIP(host) != nil || strings.HasSuffix(host, ".") {
		return address
	}
	return net.JoinHostPort(host+".", port)
}

// redirect checks each address that a server sends us to.
func (f *Fetcher) redirect(most int) func(*http.Request, []*http.Request) error {
	return func(next *http.Request, via []*http.Request) error {
		if len(via) > most {
			return refused(ReasonRedirects, "")
		}
		next.Header.Del("Referer") // the address may be signed for us alone
		return f.guard.normalise(next.URL)
	}
}

// Fetch asks for a file. It returns when the first bytes are there; the rest is read with Fetched.Body. Every error,
// also one of reading, is a *FetchError.
func (f *Fetcher) Fetch(ctx context.Context, address string) (*Fetched, error) {
	u, err := f.guard.parse(address)
	if err != nil {
		return nil, err
	}
	limited, cancel := context.WithTimeout(ctx, f.timeout)
	req, err := http.NewRequestWithContext(limited, http.MethodGet, u.String(), http.NoBody)
	if err != nil {
		cancel()
		return nil, refused(ReasonAddress, "it cannot be read")
	}
	req.Header.Set("User-Agent", "Chatbox")
	res, err := f.client.Do(req) //nolint:bodyclose // closed with what is returned
	if err != nil {
		cancel()
		return nil, failure(ctx, err)
	}
	body := &transfer{caller: ctx.Err, limit: limited.Err, end: cancel, body: res.Body, capped: capped{r: res.Body, left: f.maxBytes}}
	got, err := f.accept(res, body)
	if err != nil {
		_ = body.Close()
		return nil, err
	}
	return got, nil
}

// accept looks at an answer and at the first bytes of its body.
func (f *Fetcher) accept(res *http.Response, body *transfer) (*Fetched, error) {
	encoding := res.Header.Get("Content-Encoding")
	switch {
	case res.StatusCode != http.StatusOK:
		return nil, &FetchError{Reason: ReasonStatus, Status: res.StatusCode}
	case encoding != "" && !strings.EqualFold(encoding, "identity"):
		return nil, &FetchError{Reason: ReasonAnswer, detail: "it is packed although that was not asked for"}
	case res.ContentLength > f.maxBytes:
		return nil, &FetchError{Reason: ReasonTooLarge, cause: ErrTooLarge}
	}
	head := bufio.NewReaderSize(body, sniffed)
	typ, err := typeOf(head)
	if err != nil {
		return nil, err
	}
	name := res.Request.URL.Path
	if _, params, err := mime.ParseMediaType(res.Header.Get("Content-Disposition")); err == nil && params["filename"] != "" {
		name = params["filename"]
	}
	return &Fetched{Name: cleanName(name, typ), MIME: typ, Size: res.ContentLength, Body: peeked{head, body}}, nil
}

// peeked is a body of which some has been looked at.
type peeked struct {
	io.Reader
	io.Closer
}

// transfer is the body of an answer within its limits.
type transfer struct {
	capped
	caller func() error // of the caller's ctx
	limit  func() error // of ours
	end    context.CancelFunc
	body   io.Closer
}

// Read implements io.Reader.
func (t *transfer) Read(p []byte) (int, error) {
	n, err := t.capped.Read(p)
	if errors.Is(err, io.EOF) {
		// A server that sees us leave may still end its answer well, and that may be read before the connection is closed.
		err = t.limit()
		if err == nil {
			return n, io.EOF
		}
	}
	if err != nil {
		err = failed(t.caller(), err)
	}
	return n, err
}

// Close ends the transfer.
func (t *transfer) Close() error {
	t.end()
	return t.body.Close()
}

// Reason says why a file was not fetched.
type Reason string

// Reasons.
const (
	ReasonAddress   Reason = "address"   // it is not the address of a file on the open internet
	ReasonForbidden Reason = "forbidden" // it leads to where nothing may be fetched from
	ReasonRedirects Reason = "redirects" // it leads on too often
	ReasonStatus    Reason = "status"    // the server refused
	ReasonAnswer    Reason = "answer"    // the server's answer cannot be used
	ReasonTooLarge  Reason = "too_large"
	ReasonTimeout   Reason = "timeout"
	ReasonNetwork   Reason = "network"   // no name, no connection, no valid certificate, or it broke
	ReasonCancelled Reason = "cancelled" // the caller's ctx ended
)

// FetchError is a file that was not fetched. Its text is safe to log: it holds nothing of the address, neither as it
// was given nor as it was found to be.
type FetchError struct {
	Reason Reason
	Status int // of HTTP; 0: there was none, or it is not the reason

	detail string // in words of our own; may be empty
	cause  error  // without addresses; may be nil
}

// Error implements error.
func (e *FetchError) Error() string {
	text := "fetch foreign file: " + string(e.Reason)
	if e.Status != 0 {
		text += ", status " + strconv.Itoa(e.Status)
	}
	if e.detail != "" {
		text += ": " + e.detail
	}
	return text
}

// Unwrap returns the cause, such as context.Canceled or ErrTooLarge.
func (e *FetchError) Unwrap() error { return e.cause }

// Refused says whether it was we who did not want to reach the address.
func (e *FetchError) Refused() bool {
	return e.Reason == ReasonAddress || e.Reason == ReasonForbidden || e.Reason == ReasonRedirects
}

func refused(r Reason, detail string) *FetchError { return &FetchError{Reason: r, detail: detail} }

func failure(ctx context.Context, err error) *FetchError { return failed(ctx.Err(), err) }

// failed makes a FetchError of what the network said. ctxErr is that of the caller's ctx.
func failed(ctxErr, err error) *FetchError {
	var fe *FetchError
	var ne net.Error
	switch {
	case errors.As(err, &fe):
		return fe
	case ctxErr != nil:
		return &FetchError{Reason: ReasonCancelled, cause: ctxErr}
	case errors.Is(err, ErrTooLarge):
		return &FetchError{Reason: ReasonTooLarge, cause: ErrTooLarge}
	case errors.Is(err, ssrf.ErrProhibitedIP), errors.Is(err, ssrf.ErrProhibitedPort), errors.Is(err, ssrf.ErrProhibitedNetwork),
		errors.Is(err, ssrf.ErrInvalidHostPort):
		return refused(ReasonForbidden, "its host is not on the open internet")
	case errors.Is(err, context.DeadlineExceeded):
		return &FetchError{Reason: ReasonTimeout, cause: context.DeadlineExceeded}
	case errors.As(err, &ne) && ne.Timeout():
		return &FetchError{Reason: ReasonTimeout}
	default:
		return &FetchError{Reason: ReasonNetwork}
	}
}
