package files

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

const png = "\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR"

func reasonOf(err error) Reason {
	var e *FetchError
	if errors.As(err, &e) {
		return e.Reason
	}
	return ""
}

// get fetches and reads all.
func get(ctx context.Context, f *Fetcher, address string) (*Fetched, string, error) {
	got, err := f.Fetch(ctx, address)
	if err != nil {
		return nil, "", err
	}
	defer func() { _ = got.Body.Close() }()
	text, err := io.ReadAll(got.Body)
	return got, string(text), err
}

func TestFetch_ofAFileOutside_returnsItWithTheTypeOfItsContent(t *testing.T) {
	s := newSite(t, body(png, "Content-Type", "text/html", "Content-Disposition", `attachment; filename="../../plot\u202e.png"`))
	got, text, err := get(t.Context(), s.fetcher, s.url("/a/b?sign=secret"))
	require.NoError(t, err)
	assert.Equal(t, png, text)
	assert.Equal(t, "image/png", got.MIME)
	assert.Equal(t, int64(len(png)), got.Size)
	assert.NotContains(t, got.Name, "/")
	s.untouched(t)
}

func TestFetch_withoutAName_takesThatOfTheAddress(t *testing.T) {
	s := newSite(t, body(png))
	got, _, err := get(t.Context(), s.fetcher, s.url("/a/cat%20one.png?sign=secret"))
	require.NoError(t, err)
	assert.Equal(t, "cat one.png", got.Name)
	got, _, err = get(t.Context(), s.fetcher, s.url("/"))
	require.NoError(t, err)
	assert.Equal(t, "file.png", got.Name)
}

// inward are hosts that lead into a network, in all spellings that some client understands.
var inward = []string{
	"127.0.0.1", "127.1", "2130706433", "0x7f000001", "0x7f.1", "0x7F.0.0.0x1", "0177.0.0.1", "017700000001", "127.0.0.1.", "127.000.000.001",
	"0", "0.0.0.0", "0x0", "00", "0x", "[::1]", "[::]", "[::ffff:7f00:1]", "[::ffff:127.0.0.1]", "[0:0:0:0:0:ffff:7f00:1]", "[::127.0.0.1]",
	"[::ffff:0:127.0.0.1]", "169.254.169.254", "2852039166", "0xa9fea9fe", "[::ffff:a9fe:a9fe]", "[fd00:ec2::254]", "[fd00::1]", "[fc00::1]",
	"[fe80::1]", "[fe80::1%25lo]", "[::1%25lo]", "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1", "100.64.0.1", "198.18.0.1",
	"192.0.0.192", "224.0.0.1", "255.255.255.255", "[64:ff9b::7f00:1]", "[64:ff9b:1::1]", "[2002:7f00:1::]", "[2001:db8::1]", "[2001::1]", "[ff02::1]",
	"localhost", "localhost.", "LOCALHOST", "a.localhost", "redis", "redis.", "redis.internal", "metadata.google.internal", "printer.local",
	"nas.home.arpa", "１２７.０.０.１", "127。0。0。1", "ⓛocalhost", "①②⑦.0.0.1", "example.com.127.0.0.1", "1.example.com.0x7f000001",
	"%31%32%37.0.0.1", "127.0.0.1%00.example.com",
}

// Beyond T20: whatever the spelling of an address, nothing inside is connected to.
func TestFetch_ofAnAddressInside_connectsToNothing(t *testing.T) {
	s := newSite(t, body(png))
	for _, h := range inward {
		t.Run(h, func(t *testing.T) {
			_, err := s.fetcher.Fetch(t.Context(), fmt.Sprintf("https://%s:%d/x", h, s.port))
			require.Contains(t, []Reason{ReasonAddress, ReasonForbidden}, reasonOf(err), "%v", err)
			assert.True(t, err.(*FetchError).Refused()) //nolint:errorlint // checked above
		})
	}
	s.untouched(t)
	assert.Empty(t, s.names.asked, "names were looked up")
}

func TestFetch_ofWhatIsNoAddressOutside_connectsToNothing(t *testing.T) {
	s := newSite(t, body(png))
	p := fmt.Sprint(s.port)
	for _, address := range []string{
		"", "x", "/x", "//example.com/x", "example.com", "https:", "https://", "https:///x", "https:example.com", "https:/example.com",
		"http://example.com:" + p, "HTTP://example.com:" + p, "ftp://example.com:" + p, "file:///etc/passwd", "gopher://127.0.0.1:" + p + "/_x",
		"data:text/plain,x", "javascript:alert(1)", "unix:///run/x.sock", "wss://example.com:" + p, "https+unix://x:" + p,
		"https://user@example.com:" + p, "https://user:secret@example.com:" + p, "https://@example.com:" + p, "https://example.com@127.0.0.1:" + p,
		"https://example.com", "https://example.com:443", "https://example.com:80", "https://example.com:22", "https://example.com:6379",
		"https://example.com:0", "https://example.com:99999", "https://example.com:-1", "https://example.com:" + p + "0", "https://127.0.0.1:443",
		"https://example.com\\@127.0.0.1:" + p, "https://127.0.0.1\\.example.com:" + p, "https://exa mple.com:" + p, "https://example.com\n:" + p,
		"https://example.com:" + p + "\r\nHost: x", "https://example..com:" + p, "https://-example.com:" + p, "https://.com:" + p, "https://[::1:" + p,
		"https://[example.com]:" + p, "https://exam%70le.com:" + p, "https://example.com:" + p + "/" + strings.Repeat("x", maxAddress), "https://\xff.com:" + p,
	} {
		_, err := s.fetcher.Fetch(t.Context(), address)
		assert.Contains(t, []Reason{ReasonAddress, ReasonForbidden}, reasonOf(err), "%q: %v", address, err)
	}
	s.untouched(t)
	assert.Empty(t, s.names.asked, "names were looked up")
}

// Beyond T20: a name that stands for something inside is not connected to, however the name server puts it.
func TestFetch_ofANameThatLeadsInside_connectsToNothing(t *testing.T) {
	s := newSite(t, body(png))
	for _, ip := range []string{"127.0.0.1", "::1", "::ffff:127.0.0.1", "0.0.0.0", "::", "169.254.169.254", "fd00:ec2::254", "10.0.0.1", "64:ff9b::7f00:1"} {
		s.names.say("inside.example.com", []netip.Addr{netip.MustParseAddr(ip)})
		_, err := s.fetcher.Fetch(t.Context(), "https://"+s.at("inside.example.com"))
		assert.Equal(t, ReasonForbidden, reasonOf(err), "%s: %v", ip, err)
	}
	s.untouched(t)
}

// Beyond T20: a name is judged by the address of each connection, so that one which changes between two looks gains nothing.
func TestFetch_ofANameThatChanges_connectsToNothingInside(t *testing.T) {
	var s *site
	s = newSite(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/again" {
			_, _ = io.WriteString(w, "inside")
			return
		}
		w.Header().Set("Location", s.url("/again"))
		w.WriteHeader(http.StatusFound)
	}))
	s.names.say(host, []netip.Addr{outside}, []netip.Addr{inside})
	_, err := s.fetcher.Fetch(t.Context(), s.url("/"))
	assert.Equal(t, ReasonForbidden, reasonOf(err), "%v", err)

	s.names.say(host, []netip.Addr{outside}, []netip.Addr{inside})
	_, text, err := get(t.Context(), s.fetcher, s.url("/again"))
	require.NoError(t, err, "the first look leads outside")
	assert.Equal(t, "inside", text)
	_, err = s.fetcher.Fetch(t.Context(), s.url("/again"))
	assert.Equal(t, ReasonForbidden, reasonOf(err), "%v", err)
	s.untouched(t)
}

func TestFetch_ofANameForBothSides_connectsOutsideOnly(t *testing.T) {
	s := newSite(t, body(png))
	s.names.say(host, []netip.Addr{inside, netip.MustParseAddr("::1"), outside})
	_, _, err := get(t.Context(), s.fetcher, s.url("/"))
	require.NoError(t, err)
	s.untouched(t)
}

// Beyond T20: each redirect is checked as the address itself was.
func TestFetch_ofARedirectInside_connectsToNothing(t *testing.T) {
	var location string
	s := newSite(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Location", location)
		w.WriteHeader(http.StatusTemporaryRedirect)
	}))
	s.names.say("inside.example.com", []netip.Addr{inside})
	var locations []string
	for _, h := range append([]string{"inside.example.com"}, inward...) {
		locations = append(locations, fmt.Sprintf("https://%s:%d/x", h, s.port))
	}
	locations = append(locations, "http://"+s.at(host), "http://"+s.at(inside.String()), "https://example.com:22/", "https://example.com/",
		"https://user:secret@"+s.at(host), "//"+s.at(inside.String())+"/x", "file:///etc/passwd", "gopher://"+s.at(inside.String()))
	for _, location = range locations {
		_, err := s.fetcher.Fetch(t.Context(), s.url("/"))
		var fe *FetchError
		require.ErrorAs(t, err, &fe, location)
		// What net/http cannot read as a location is no redirect.
		assert.True(t, fe.Refused() || fe.Reason == ReasonNetwork, "%s: %v", location, err)
	}
	s.untouched(t)
}

func TestFetch_ofTooManyRedirects_stops(t *testing.T) {
	var asked int
	s := newSite(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked++
		var n int
		_, _ = fmt.Sscanf(r.URL.Path, "/%d", &n)
		if n > 0 {
			http.Redirect(w, r, fmt.Sprintf("/%d", n-1), http.StatusFound)
			return
		}
		_, _ = io.WriteString(w, png)
	}))
	_, text, err := get(t.Context(), s.fetcher, s.url("/2"))
	require.NoError(t, err)
	assert.Equal(t, png, text)
	assert.Equal(t, 3, asked)
	_, err = s.fetcher.Fetch(t.Context(), s.url("/3"))
	assert.Equal(t, ReasonRedirects, reasonOf(err), "%v", err)
	assert.Equal(t, 6, asked)
}

func TestFetch_tellsNothingOfUs(t *testing.T) {
	var seen []http.Header
	var closes []bool
	s := newSite(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		seen, closes = append(seen, r.Header), append(closes, r.Close)
		http.SetCookie(w, &http.Cookie{Name: "c", Value: "v"})
		if len(seen) == 1 {
			http.Redirect(w, r, "/next", http.StatusFound)
		}
	}))
	_, _, err := get(t.Context(), s.fetcher, s.url("/?signature=secret"))
	require.NoError(t, err)
	_, _, err = get(t.Context(), s.fetcher, s.url("/"))
	require.NoError(t, err)
	require.Len(t, seen, 3)
	for i, h := range seen {
		for name := range h {
			assert.Contains(t, []string{"User-Agent", "Connection", "Accept-Encoding"}, name)
		}
		assert.True(t, closes[i], "the connection is kept")
	}
	s.untouched(t)
}

func TestFetch_beyondALimit_fails(t *testing.T) {
	long := strings.Repeat("x", 5000)
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/announced":
			w.Header().Set("Content-Length", "5000")
			_, _ = io.WriteString(w, long)
		case "/unannounced":
			_, _ = io.WriteString(w, long[:4000])
			_ = http.NewResponseController(w).Flush()
			_, _ = io.WriteString(w, long[4000:])
		case "/exact":
			_, _ = io.WriteString(w, long[:4096])
			_ = http.NewResponseController(w).Flush()
		case "/cut":
			w.Header().Set("Content-Length", "4000")
			_, _ = io.WriteString(w, long[:3500])
			_ = http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		case "/stalled", "/silent":
			if r.URL.Path == "/stalled" {
				_, _ = io.WriteString(w, long[:3500])
				_ = http.NewResponseController(w).Flush()
			}
			<-r.Context().Done()
		case "/packed":
			w.Header().Set("Content-Encoding", "gzip")
			_, _ = io.WriteString(w, "\x1f\x8b")
		case "/gone":
			w.WriteHeader(http.StatusNotFound)
		case "/part":
			w.WriteHeader(http.StatusPartialContent)
		}
	})
	s := newSite(t, handler, func(o *FetcherOptions) { o.MaxBytes, o.Timeout = 4096, 300*time.Millisecond })
	for path, want := range map[string]Reason{
		"/announced": ReasonTooLarge, "/unannounced": ReasonTooLarge, "/exact": "", "/cut": ReasonNetwork, "/stalled": ReasonTimeout,
		"/silent": ReasonTimeout, "/packed": ReasonAnswer, "/gone": ReasonStatus, "/part": ReasonStatus,
	} {
		_, text, err := get(t.Context(), s.fetcher, s.url(path))
		assert.Equal(t, want, reasonOf(err), "%s: %v", path, err)
		assert.LessOrEqual(t, len(text), 4096)
		assert.Equal(t, want == ReasonTooLarge, errors.Is(err, ErrTooLarge), "%s", path)
	}
}

func TestFetch_whenCancelled_saysSo(t *testing.T) {
	reached := make(chan struct{})
	s := newSite(t, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		close(reached)
		<-r.Context().Done()
	}))
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-reached
		cancel()
	}()
	_, err := s.fetcher.Fetch(ctx, s.url("/"))
	require.Equal(t, ReasonCancelled, reasonOf(err))
	require.ErrorIs(t, err, context.Canceled)
}

// Beyond T20: what failed is told without the address, which may be signed.
func TestFetch_whenItFails_holdsNothingOfTheAddressInItsError(t *testing.T) {
	const secret = "s3cr3t"
	var location string
	s := newSite(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/move" {
			w.Header().Set("Location", location)
			w.WriteHeader(http.StatusFound)
			return
		}
		w.WriteHeader(http.StatusForbidden)
	}))
	s.names.say(secret+".nowhere.example.com", nil)
	s.names.say(secret+".inside.example.com", []netip.Addr{inside})
	for _, address := range []string{
		s.url("/" + secret), s.url("/?x=" + secret), "https://" + secret + "@example.com", "https://u:" + secret + "@" + s.at(host), secret + "://x", "https://" + secret,
		"https://" + s.at(secret+".nowhere.example.com"), "https://" + s.at(secret+".inside.example.com"), "https://example.com:" + secret, "https://%zz" + secret,
		"https://" + s.at("wrong-certificate."+secret+".example.com"),
	} {
		_, err := s.fetcher.Fetch(t.Context(), address)
		require.Error(t, err)
		assert.NotContains(t, strings.ToLower(fmt.Sprintf("%v %+v %#v", err, err, errors.Unwrap(err))), secret)
		location = address
		_, err = s.fetcher.Fetch(t.Context(), s.url("/move"))
		require.Error(t, err)
		assert.NotContains(t, strings.ToLower(fmt.Sprintf("%v %+v %#v", err, err, errors.Unwrap(err))), secret)
	}
	s.untouched(t)
}

func TestNewFetcher_withNegativeLimits_saysAll(t *testing.T) {
	_, err := NewFetcher(FetcherOptions{Timeout: -1, MaxBytes: -1})
	require.ErrorContains(t, err, "timeout")
	require.ErrorContains(t, err, "bytes")
}

// Beyond T20, for any address of any special range, as a number in any spelling and behind a name.
func TestFetch_ofAnySpecialAddress_isRefused(t *testing.T) {
	s := newSite(t, body(png))
	rapid.Check(t, func(t *rapid.T) {
		ip := rapid.Custom(specialAddress).Draw(t, "address")
		var hosts []string
		if ip.Is4() {
			hosts = spellings(ip.As4())
		} else {
			hosts = []string{"[" + ip.String() + "]", "[" + ip.StringExpanded() + "]"}
		}
		h := rapid.SampledFrom(hosts).Draw(t, "host")
		_, err := s.fetcher.guard.parse("https://" + h + ":" + fmt.Sprint(s.port) + "/")
		require.Error(t, err)
		if rapid.Bool().Draw(t, "mapped") {
			ip = netip.AddrFrom16(ip.As16()) // an IPv4 address where one of IPv6 belongs
		}
		s.names.say("any.example.com", []netip.Addr{ip})
		_, err = s.fetcher.Fetch(context.Background(), "https://"+s.at("any.example.com"))
		require.Equal(t, ReasonForbidden, reasonOf(err), "%v", err)
	})
	s.untouched(t)
}

// special are ranges that are not the open internet. They are written down here and not taken from the library.
var special = []string{
	"0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24", "192.0.2.0/24", "192.168.0.0/16",
	"198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4", "::/128", "::1/128", "64:ff9b::/96",
	"64:ff9b:1::/48", "100::/64", "2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20", "5f00::/16", "fc00::/7", "fe80::/10", "fec0::/10", "ff00::/8",
}

func specialAddress(t *rapid.T) netip.Addr {
	p := netip.MustParsePrefix(rapid.SampledFrom(special).Draw(t, "range"))
	b := p.Addr().AsSlice()
	for i, r := range rapid.SliceOfN(rapid.Byte(), len(b), len(b)).Draw(t, "rest") {
		fixed := min(max(p.Bits()-8*i, 0), 8)
		b[i] |= r & (0xff >> fixed)
	}
	ip, _ := netip.AddrFromSlice(b)
	if ip == outside { // which plays the open internet here
		return inside
	}
	return ip
}

// spellings of an IPv4 address that resolvers of systems and browsers understand.
func spellings(b [4]byte) []string {
	n := uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3])
	return []string{
		fmt.Sprintf("%d.%d.%d.%d", b[0], b[1], b[2], b[3]), fmt.Sprint(n), fmt.Sprintf("%#x", n), fmt.Sprintf("0%o", n),
		fmt.Sprintf("0%o.0%o.0%o.0%o", b[0], b[1], b[2], b[3]), fmt.Sprintf("0x%x.0x%x.0x%x.0x%x", b[0], b[1], b[2], b[3]),
		fmt.Sprintf("%d.%d", b[0], n&0xffffff), fmt.Sprintf("%d.%d.%d", b[0], b[1], n&0xffff), fmt.Sprintf("%d.%d.%d.%d.", b[0], b[1], b[2], b[3]),
		fmt.Sprintf("[::ffff:%d.%d.%d.%d]", b[0], b[1], b[2], b[3]), fmt.Sprintf("[::%x:%x]", n>>16, n&0xffff), fmt.Sprintf("[64:ff9b::%x:%x]", n>>16, n&0xffff),
	}
}
