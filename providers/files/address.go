package files

import (
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"code.dny.dev/ssrf"
	"golang.org/x/net/idna"
)

const (
	maxAddress = 2048 // bytes of an address
	httpsPort  = 443
)

// guard knows which addresses are on the open internet. It is not changed once made.
type guard struct {
	ports  []uint16
	ranges *ssrf.Guardian
}

// newGuard makes a guard. allow are ranges that are reachable although they are not on the open internet.
func newGuard(ports []uint16, allow []netip.Prefix) guard {
	var v4, v6 []netip.Prefix
	for _, p := range allow {
		if p.Addr().Is4() {
			v4 = append(v4, p)
		} else {
			v6 = append(v6, p)
		}
	}
	g := ssrf.New(ssrf.WithPorts(ports...), ssrf.WithAllowedV4Prefixes(v4...), ssrf.WithAllowedV6Prefixes(v6...))
	return guard{ports: ports, ranges: g}
}

// parse reads the address of a file and returns it in its one spelling, without a fragment. It refuses what cannot be
// the address of a file on the open internet, as far as the address itself tells; what its name stands for is seen
// by the dialer alone.
func (g guard) parse(address string) (*url.URL, error) {
	if len(address) > maxAddress || !utf8.ValidString(address) {
		return nil, refused(ReasonAddress, "it is too long or no text")
	}
	u, err := url.Parse(address)
	if err != nil { // its text quotes the address
		return nil, refused(ReasonAddress, "it cannot be read")
	}
	return u, g.normalise(u)
}

// normalise is parse for an address that has been read.
func (g guard) normalise(u *url.URL) error {
	switch {
	case u.Scheme != "https":
		return refused(ReasonAddress, "its scheme is not https")
	case u.Opaque != "" || u.Host == "":
		return refused(ReasonAddress, "it has no host")
	case u.User != nil:
		return refused(ReasonAddress, "it holds a user")
	}
	port := httpsPort
	if p := u.Port(); p != "" {
		n, err := strconv.ParseUint(p, 10, 16)
		if err != nil {
			return refused(ReasonAddress, "its port is not allowed")
		}
		port = int(n)
	}
	if !slices.Contains(g.ports, uint16(port)) {
		return refused(ReasonAddress, "its port is not allowed")
	}
	host, err := g.host(u.Hostname())
	if err != nil {
		return err
	}
	u.Host, u.Fragment, u.RawFragment, u.RawQuery = host, "", "", escaped(u.RawQuery)
	if strings.Contains(host, ":") {
		u.Host = "[" + host + "]"
	}
	if port != httpsPort {
		u.Host = net.JoinHostPort(host, strconv.Itoa(port))
	}
	return nil
}

// host checks the host of an address and returns its one spelling: lower case, ASCII, no dot at the end.
func (g guard) host(host string) (string, error) {
	if strings.Contains(host, ":") {
		return g.number(host)
	}
	if !ascii(host) {
		a, err := idna.Lookup.ToASCII(host)
		if err != nil {
			return "", refused(ReasonAddress, "its host is no name")
		}
		host = a
	}
	host = strings.TrimSuffix(strings.ToLower(host), ".")
	labels := strings.Split(host, ".")
	last := labels[len(labels)-1]
	if numeric(last) { // a number, as browsers and name services of the system read it: 127.1, 0x7f.1, 017700000001
		return g.number(host)
	}
	if len(host) > 253 || slices.ContainsFunc(labels, func(l string) bool { return !isLabel(l) }) {
		return "", refused(ReasonAddress, "its host is no name")
	}
	if len(labels) < 2 || slices.Contains(private, last) || strings.HasSuffix(host, ".home.arpa") {
		return "", refused(ReasonForbidden, "its host is a name of a private network")
	}
	return host, nil
}

// private are top-level domains that no public name ends in (RFC 6761, 6762, 7686, ICANN SAC113).
var private = []string{"localhost", "local", "internal", "invalid", "onion", "test"}

// number checks a host that is a number. Only the usual spelling of one counts.
func (g guard) number(host string) (string, error) {
	ip, err := netip.ParseAddr(host)
	if err != nil || ip.Zone() != "" {
		return "", refused(ReasonForbidden, "its host is a number in an unusual spelling")
	}
	if g.ranges.SafeAddr(ip) != nil {
		return "", refused(ReasonForbidden, "its host is not on the open internet")
	}
	return ip.String(), nil
}

// numeric says whether the last label of a host makes it a number for some reader. No top-level domain begins with a digit.
func numeric(label string) bool { return label != "" && label[0] >= '0' && label[0] <= '9' }

func isLabel(l string) bool {
	return l != "" && len(l) <= 63 && strings.Trim(l, "abcdefghijklmnopqrstuvwxyz0123456789-_") == "" &&
		l[0] != '-' && l[len(l)-1] != '-'
}

// escaped is a query with what RFC 3986 does not let stand there percent-encoded: net/url passes on anything.
func escaped(query string) string {
	var b strings.Builder
	for i := range len(query) {
		if c := query[i]; c <= ' ' || c >= 0x7f || strings.IndexByte("\"<>\\^`{|}", c) >= 0 {
			fmt.Fprintf(&b, "%%%02X", c)
		} else {
			b.WriteByte(c)
		}
	}
	return b.String()
}

func ascii(s string) bool {
	for i := range len(s) {
		if s[i] >= utf8.RuneSelf {
			return false
		}
	}
	return true
}
