package assets

import (
	"compress/gzip"
	"crypto/tls"
	"io"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func get(t *testing.T, h http.Handler, path string, edit ...func(*http.Request)) *http.Response {
	t.Helper()
	r := httptest.NewRequest(http.MethodGet, path, nil)
	r.Host = "chat.example.com"
	for _, e := range edit {
		e(r)
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w.Result()
}

func body(t *testing.T, res *http.Response) string {
	t.Helper()
	b, err := io.ReadAll(res.Body)
	require.NoError(t, err)
	return string(b)
}

// script finds the name of the page's script in the page.
func script(t *testing.T, h http.Handler) string {
	t.Helper()
	m := regexp.MustCompile(`src="(app-[0-9a-f]{10}\.js)"`).FindStringSubmatch(body(t, get(t, h, "/chat/")))
	require.Len(t, m, 2, "the page names its script")
	return m[1]
}

func TestHandler_pageIsAskedForAgain_itsFilesAreKeptForEver(t *testing.T) {
	h := Handler(Options{})
	page := get(t, h, "/chat/")
	assert.Equal(t, http.StatusOK, page.StatusCode)
	assert.Equal(t, "text/html; charset=utf-8", page.Header.Get("Content-Type"))
	assert.Equal(t, "no-cache", page.Header.Get("Cache-Control"))
	assert.NotEmpty(t, page.Header.Get("ETag"))

	js := get(t, h, "/chat/"+script(t, h))
	assert.Equal(t, http.StatusOK, js.StatusCode)
	assert.Equal(t, "text/javascript; charset=utf-8", js.Header.Get("Content-Type"))
	assert.Equal(t, "public, max-age=31536000, immutable", js.Header.Get("Cache-Control"))
	assert.Equal(t, "nosniff", js.Header.Get("X-Content-Type-Options"))
}

func TestHandler_unchangedPage_isNotSentAgain(t *testing.T) {
	h := Handler(Options{})
	tag := get(t, h, "/chat/").Header.Get("ETag")
	for _, match := range []string{tag, `"other", ` + tag, strings.TrimPrefix(tag, "W/"), "*"} {
		res := get(t, h, "/chat/", func(r *http.Request) { r.Header.Set("If-None-Match", match) })
		assert.Equal(t, http.StatusNotModified, res.StatusCode, match)
		assert.Empty(t, body(t, res))
		assert.NotEmpty(t, res.Header.Get("Content-Security-Policy"), "a 304 replaces the headers that are kept")
	}
	res := get(t, h, "/chat/", func(r *http.Request) { r.Header.Set("If-None-Match", `"other"`) })
	assert.Equal(t, http.StatusOK, res.StatusCode)
}

// Promise 42: nothing stored can run in a browser.
func TestHandler_page_forbidsEverythingItDoesNotNeed(t *testing.T) {
	res := get(t, Handler(Options{}), "/chat/")
	csp := res.Header.Get("Content-Security-Policy")
	assert.Equal(t, "default-src 'none'; script-src 'self'; style-src 'self'; "+
		"connect-src 'self' ws://chat.example.com wss://chat.example.com; img-src 'self' blob: data:; font-src 'self'; "+
		"base-uri 'none'; form-action 'none'; frame-src 'none'; frame-ancestors 'self'; "+
		"require-trusted-types-for 'script'; trusted-types 'none'", csp)
	assert.Equal(t, "no-referrer", res.Header.Get("Referrer-Policy"))
	assert.Equal(t, "nosniff", res.Header.Get("X-Content-Type-Options"))
	assert.Equal(t, "microphone=(self), camera=(), geolocation=()", res.Header.Get("Permissions-Policy"))
	assert.NotRegexp(t, `<script[^>]*>[^<]`, body(t, res), "no script stands in the page itself")
	assert.NotContains(t, body(t, get(t, Handler(Options{}), "/chat/")), "style=")
}

func TestHandler_overTLS_allowsNoClearSocket(t *testing.T) {
	res := get(t, Handler(Options{}), "/chat/", func(r *http.Request) { r.TLS = &tls.ConnectionState{} })
	assert.Contains(t, res.Header.Get("Content-Security-Policy"), "connect-src 'self' wss://chat.example.com;")
}

func TestHandler_hostileHost_addsNothingToThePolicy(t *testing.T) {
	for _, host := range []string{"a; script-src *", "a b", "a,b", "x'y", "", "a\r\nX: y", "[::1", "host:port", "*"} {
		res := get(t, Handler(Options{}), "/chat/", func(r *http.Request) { r.Host = host })
		assert.Contains(t, res.Header.Get("Content-Security-Policy"), "connect-src 'self'; img-src", "host %q", host)
	}
	for _, host := range []string{"localhost:8080", "[::1]:8080", "10.0.0.1"} {
		res := get(t, Handler(Options{}), "/chat/", func(r *http.Request) { r.Host = host })
		assert.Contains(t, res.Header.Get("Content-Security-Policy"), "ws://"+host+" wss://"+host+";")
	}
}

func TestHandler_embedOrigins_mayFrameThePage_andNothingElseMay(t *testing.T) {
	tests := map[string]struct {
		origins []string
		want    string
	}{
		"own origin by default":  {nil, "frame-ancestors 'self';"},
		"named ones":             {[]string{"https://app.example.com", "http://localhost:3000/"}, "frame-ancestors https://app.example.com http://localhost:3000;"},
		"mistakes are left out":  {[]string{"https://ok.example", "*", "https://x.example/path", "'unsafe-inline'"}, "frame-ancestors https://ok.example;"},
		"only mistakes: nobody":  {[]string{"https://a.example; script-src *", "javascript:x"}, "frame-ancestors 'none';"},
		"credentials no origin":  {[]string{"https://u:p@a.example"}, "frame-ancestors 'none';"},
		"wildcards are mistakes": {[]string{"https://*.example.com"}, "frame-ancestors 'none';"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			res := get(t, Handler(Options{EmbedOrigins: tt.origins}), "/chat/")
			assert.Contains(t, res.Header.Get("Content-Security-Policy"), tt.want)
		})
	}
}

func TestHandler_devMode_isSaidInThePage_andHasAnotherTag(t *testing.T) {
	dev, prod := get(t, Handler(Options{Dev: true}), "/chat/"), get(t, Handler(Options{}), "/chat/")
	assert.NotEqual(t, dev.Header.Get("ETag"), prod.Header.Get("ETag"))
	assert.Contains(t, body(t, dev), `<meta name="chatbox-dev" content="1">`)
	assert.Contains(t, body(t, prod), `<meta name="chatbox-dev" content="0">`)
}

func TestHandler_otherPaths_areNotFound(t *testing.T) {
	h := Handler(Options{})
	for _, path := range []string{"/", "/chat/index.html", "/chat/manifest.json", "/chat/nope.js", "/chat/dist/", "/chat/../embed.go", "/chatter", "/chat//"} {
		res := get(t, h, path)
		assert.Equal(t, http.StatusNotFound, res.StatusCode, path)
	}
}

func TestHandler_withoutSlash_leadsToThePage(t *testing.T) {
	res := get(t, Handler(Options{}), "/chat?x=1")
	assert.Equal(t, http.StatusPermanentRedirect, res.StatusCode)
	assert.Equal(t, "/chat/?x=1", res.Header.Get("Location"))
}

func TestHandler_otherMethods_areRefused(t *testing.T) {
	h := Handler(Options{})
	for _, method := range []string{http.MethodPost, http.MethodPut, http.MethodDelete, http.MethodOptions} {
		res := get(t, h, "/chat/", func(r *http.Request) { r.Method = method })
		assert.Equal(t, http.StatusMethodNotAllowed, res.StatusCode, method)
		assert.Equal(t, "GET, HEAD", res.Header.Get("Allow"))
	}
	res := get(t, h, "/chat/", func(r *http.Request) { r.Method = http.MethodHead })
	assert.Equal(t, http.StatusOK, res.StatusCode)
	assert.NotEmpty(t, res.Header.Get("Content-Length"))
	assert.Empty(t, body(t, res))
}

func TestHandler_sendsLessToWhoCanUnpack(t *testing.T) {
	h := Handler(Options{})
	path := "/chat/" + script(t, h)
	plain := body(t, get(t, h, path))
	res := get(t, h, path, func(r *http.Request) { r.Header.Set("Accept-Encoding", "br, gzip;q=0.8") })
	require.Equal(t, "gzip", res.Header.Get("Content-Encoding"))
	assert.Equal(t, "Accept-Encoding", res.Header.Get("Vary"))
	packed := body(t, res)
	assert.Less(t, len(packed), len(plain)/2)
	r, err := gzip.NewReader(strings.NewReader(packed))
	require.NoError(t, err)
	unpacked, err := io.ReadAll(r)
	require.NoError(t, err)
	assert.Equal(t, plain, string(unpacked))
	for _, no := range []string{"gzip;q=0", "identity", "gzip; q=0.000", ""} {
		res := get(t, h, path, func(r *http.Request) { r.Header.Set("Accept-Encoding", no) })
		assert.Empty(t, res.Header.Get("Content-Encoding"), no)
	}
}

// The page and its first script and style fit into the budget of the first load.
func TestDist_firstLoad_fitsTheBudget(t *testing.T) {
	files, err := load(false)
	require.NoError(t, err)
	total := 0
	for _, f := range files {
		total += len(f.zipped)
	}
	assert.Positive(t, total)
	assert.LessOrEqual(t, total, 53_000)
}
