package files

import (
	"net/netip"
	"net/url"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func TestParse_writesAnAddressInOneWay(t *testing.T) {
	g := newGuard([]uint16{443, 8443}, nil)
	for address, want := range map[string]string{
		"https://Example.COM":                        "https://example.com",
		"https://example.com.:443/a?b=c#d":           "https://example.com/a?b=c",
		"https://example.com:8443/":                  "https://example.com:8443/",
		"https://example.com:/":                      "https://example.com/",
		"https://bücher.example/ü":                   "https://xn--bcher-kva.example/%C3%BC",
		"https://ｅｘａｍｐｌｅ.com":                        "https://example.com",
		"https://a_b.s3.example.com/x%20y":           "https://a_b.s3.example.com/x%20y",
		"https://93.184.216.34/x":                    "https://93.184.216.34/x",
		"https://[2606:2800:220:1::1]:8443/x":        "https://[2606:2800:220:1::1]:8443/x",
		"https://[2606:2800:0220:0001:0::1]/x":       "https://[2606:2800:220:1::1]/x",
		"https://1.example.com/":                     "https://1.example.com/",
		"https://example.com/?next=http://127.0.0.1": "https://example.com/?next=http://127.0.0.1",
		"https://example.com/a b":                    "https://example.com/a%20b",
		`https://example.com/\\127.0.0.1`:            "https://example.com/%5C%5C127.0.0.1",
		`https://example.com/?q=a b"ü\%41+`:          "https://example.com/?q=a%20b%22%C3%BC%5C%41+",
	} {
		u, err := g.parse(address)
		if assert.NoError(t, err, address) {
			assert.Equal(t, want, u.String())
		}
	}
}

// Beyond T20, for any text that looks like an address: what is accepted is https on an allowed port, to a public name or
// an address that is not special, and says the same when it is read again.
func TestParse_acceptsOnlyTheOpenInternet(t *testing.T) {
	g := newGuard([]uint16{443}, nil)
	accepted := 0
	rapid.Check(t, func(t *rapid.T) {
		address := rapid.OneOf(rapid.Custom(someAddress), rapid.Custom(properAddress)).Draw(t, "address")
		if g.acceptable(t, address) {
			accepted++
		}
	})
	require.Positive(t, accepted, "the generator makes nothing that is accepted")
}

// acceptable parses an address and checks what is promised of those that are accepted.
func (g guard) acceptable(t require.TestingT, address string) bool {
	u, err := g.parse(address)
	if err != nil {
		require.True(t, strings.HasPrefix(err.Error(), "fetch foreign file: "))
		return false
	}
	text := u.String()
	require.True(t, strings.HasPrefix(text, "https://"), text)
	again, err := url.Parse(text)
	require.NoError(t, err)
	require.Nil(t, again.User)
	require.Empty(t, again.Port())
	require.Empty(t, again.Fragment)
	require.NotContains(t, text, `\`)
	require.False(t, strings.ContainsFunc(text, func(r rune) bool { return r <= ' ' || r >= 0x7f }), "%q", text)
	host := again.Hostname()
	if ip, err := netip.ParseAddr(host); err == nil {
		require.False(t, isSpecial(ip), host)
	} else {
		require.Contains(t, host, ".")
		require.Equal(t, strings.ToLower(host), host)
		last := host[strings.LastIndex(host, ".")+1:]
		require.False(t, last[0] >= '0' && last[0] <= '9', host)
		require.NotContains(t, private, last)
	}
	u2, err := g.parse(text)
	require.NoError(t, err, text)
	require.Equal(t, text, u2.String())
	return true
}

func isSpecial(ip netip.Addr) bool {
	for _, p := range append([]string{"::ffff:0:0/96"}, special...) {
		if netip.MustParsePrefix(p).Contains(ip) {
			return true
		}
	}
	return ip.Is4In6()
}

// properAddress is mostly accepted; almost nothing of someAddress is.
func properAddress(t *rapid.T) string {
	return "https://" + rapid.StringMatching(`[a-z]{1,8}(\.[a-z]{2,5}){1,2}`).Draw(t, "host") + "/" + rapid.String().Draw(t, "rest")
}

func someAddress(t *rapid.T) string {
	pick := func(name string, of ...string) string { return rapid.SampledFrom(of).Draw(t, name) }
	host := rapid.OneOf(
		rapid.SampledFrom(inward),
		rapid.SampledFrom([]string{"example.com", "EXAMPLE.com", "a.b.example.com", "bücher.example", "93.184.216.34", "[2606:2800:220:1::1]", "x_y.example.com"}),
		rapid.StringMatching(`[a-zA-Z0-9.:\-_%@\[\]\\]{1,30}`),
		rapid.StringMatching(`[a-z]{1,8}(\.[a-z]{2,5}){1,2}`),
		rapid.String(),
		rapid.Map(rapid.Uint32(), func(n uint32) string {
			return spellings([4]byte{byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)})[n%12]
		}),
	).Draw(t, "host")
	return pick("scheme", "https", "https", "https", "HTTPS", "http", "ftp", "file", "") + pick("colon", "://", "://", "://", ":", ":/", "//", "") +
		pick("user", "", "", "", "u@", "u:p@", "@", "example.com\\@") + host + pick("port", "", "", ":443", ":", ":80", ":0443", ":x") +
		pick("path", "", "/", "/a.png", "/a b", "\\", "?x", "#f", "/\n", "/"+rapid.String().Draw(t, "rest"))
}

func FuzzParse(f *testing.F) {
	for _, h := range inward {
		f.Add("https://" + h + "/x")
	}
	for _, a := range []string{"https://example.com/a?b#c", "https://u:p@example.com", "http://example.com", "https://bücher.example", "https://example.com:443"} {
		f.Add(a)
	}
	g := newGuard([]uint16{443}, nil)
	f.Fuzz(func(t *testing.T, address string) { g.acceptable(t, address) })
}

func TestCleanName(t *testing.T) {
	for name, want := range map[string]string{
		"plot.png": "plot.png", "../../etc/passwd": "passwd", `C:\x\plot.png`: "plot.png", "": "file.png", ".": "file.png", "..": "file.png", "/": "file.png",
		"gpj\u202egnp.exe": "gpjgnp.exe", "a\x00b\nc.png": "abc.png", "  .hidden ": "hidden", "\u200b": "file.png", "a\xffb": "ab", "見.png": "見.png",
		"a\u2028b": "ab",
	} {
		assert.Equal(t, want, cleanName(name, "image/png"), "%q", name)
	}
	assert.Equal(t, "file", cleanName("", "no/such-type"))
	long := cleanName(strings.Repeat("x", 500)+".png", "image/png")
	assert.Len(t, []rune(long), maxName)
	assert.True(t, strings.HasSuffix(long, "….png"))
	assert.Len(t, []rune(cleanName("x."+strings.Repeat("y", 500), "")), maxName)
}

func TestCleanName_ofAnything_isOneShortLine(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		name := cleanName(rapid.String().Draw(t, "name"), rapid.String().Draw(t, "type"))
		require.NotEmpty(t, name)
		require.LessOrEqual(t, len([]rune(name)), maxName)
		require.False(t, strings.ContainsAny(name, "/\\\n\r\x00"), "%q", name)
		require.NotContains(t, []string{".", ".."}, name)
		require.Equal(t, name, cleanName(name, ""))
	})
}
