// Package assets serves the pages that run in browsers.
//
// The pages are built by `npm run build` and committed under dist, so that Go alone builds a working binary. They
// are public and hold no data; everything they show they fetch with the user's token. All of it is read once, when
// Handler is called, and never changes afterwards; the handler may be used concurrently.
package assets

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"embed"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"mime"
	"net/http"
	"net/url"
	"path"
	"regexp"
	"strconv"
	"strings"
)

//go:embed all:dist
var dist embed.FS

// Prefix is where the pages live. Their own references are relative.
const Prefix = "/chat/"

// Options say who may embed the page and how it gets its token. The zero value is a page for production that only
// its own origin may put into a frame.
type Options struct {
	// EmbedOrigins are the origins that may show the page in a frame, as `https://app.example.com`. Empty: the
	// page's own origin. What is not an origin is left out, so that a mistake forbids instead of allowing.
	EmbedOrigins []string
	// Dev lets the page take its token from the URL fragment. Default false: it waits for the host page.
	Dev bool
}

// file is one thing to serve, ready in both codings.
type file struct {
	contentType string
	cache       string
	etag        string
	body        []byte
	zipped      []byte // nil when it would not be smaller
	page        bool   // carries the headers that protect a page
}

type handler struct {
	files     map[string]*file // by URL path below Prefix
	ancestors string
}

const (
	cachePage    = "no-cache" // may be kept, must be asked about
	cacheForever = "public, max-age=31536000, immutable"
	permissions  = "microphone=(self), camera=(), geolocation=()"
	devOff       = `<meta name="chatbox-dev" content="0">`
	devOn        = `<meta name="chatbox-dev" content="1">`
)

// Handler serves the page at Prefix and its hashed files beside it. Other paths are 404, other methods than GET and
// HEAD 405. It panics if the embedded files are incomplete, which only a broken build can cause.
func Handler(o Options) http.Handler {
	files, err := load(o.Dev)
	if err != nil {
		panic(err)
	}
	return &handler{files: files, ancestors: ancestors(o.EmbedOrigins)}
}

// load reads the files that the manifest names.
func load(dev bool) (map[string]*file, error) {
	raw, err := dist.ReadFile("dist/manifest.json")
	if err != nil {
		return nil, fmt.Errorf("read the manifest of the pages: %w", err)
	}
	var manifest map[string]string
	if err := json.Unmarshal(raw, &manifest); err != nil {
		return nil, fmt.Errorf("decode the manifest of the pages: %w", err)
	}
	files := make(map[string]*file, len(manifest))
	for _, name := range manifest {
		body, err := dist.ReadFile("dist/" + name)
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", name, err)
		}
		if name == "index.html" {
			if dev {
				body = bytes.Replace(body, []byte(devOff), []byte(devOn), 1)
			}
			files[""] = newFile(name, body, cachePage, true)
			continue
		}
		files[name] = newFile(name, body, cacheForever, false)
	}
	if files[""] == nil {
		return nil, fmt.Errorf("the manifest of the pages names no index.html")
	}
	return files, nil
}

func newFile(name string, body []byte, cache string, page bool) *file {
	sum := sha256.Sum256(body)
	f := &file{
		contentType: contentType(name),
		cache:       cache,
		etag:        `"` + base64.RawURLEncoding.EncodeToString(sum[:12]) + `"`,
		body:        body,
		page:        page,
	}
	var b bytes.Buffer
	w, err := gzip.NewWriterLevel(&b, gzip.BestCompression)
	if err != nil {
		return f
	}
	if _, err := w.Write(body); err != nil || w.Close() != nil {
		return f
	}
	if b.Len() < len(body) {
		f.zipped = b.Bytes()
	}
	return f
}

// contentType does not ask the operating system, whose tables differ.
func contentType(name string) string {
	switch ext := path.Ext(name); ext {
	case ".html":
		return "text/html; charset=utf-8"
	case ".js":
		return "text/javascript; charset=utf-8"
	case ".css":
		return "text/css; charset=utf-8"
	case ".json":
		return "application/json"
	default:
		return mime.TypeByExtension(ext)
	}
}

func (h *handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("X-Content-Type-Options", "nosniff")
	name, ok := strings.CutPrefix(r.URL.Path, Prefix)
	f := h.files[name]
	if !ok && r.URL.Path+"/" == Prefix {
		// The page's references are relative, so the slash matters. The browser keeps the fragment.
		redirect(w, r)
		return
	}
	if !ok || f == nil {
		http.NotFound(w, r)
		return
	}
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		http.Error(w, http.StatusText(http.StatusMethodNotAllowed), http.StatusMethodNotAllowed)
		return
	}
	h.serve(w, r, f)
}

func redirect(w http.ResponseWriter, r *http.Request) {
	to := url.URL{Path: Prefix, RawQuery: r.URL.RawQuery}
	http.Redirect(w, r, to.String(), http.StatusPermanentRedirect)
}

func (h *handler) serve(w http.ResponseWriter, r *http.Request, f *file) {
	head := w.Header()
	head.Set("Content-Type", f.contentType)
	head.Set("Cache-Control", f.cache)
	head.Set("Vary", "Accept-Encoding")
	head.Set("ETag", "W/"+f.etag) // weak: both codings share it
	head.Set("Referrer-Policy", "no-referrer")
	if f.page {
		head.Set("Content-Security-Policy", h.policy(r))
		head.Set("Permissions-Policy", permissions)
	}
	if matches(r.Header.Get("If-None-Match"), f.etag) {
		w.WriteHeader(http.StatusNotModified)
		return
	}
	body := f.body
	if f.zipped != nil && acceptsGzip(r.Header.Get("Accept-Encoding")) {
		head.Set("Content-Encoding", "gzip")
		body = f.zipped
	}
	head.Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(http.StatusOK)
	if r.Method == http.MethodGet {
		_, _ = w.Write(body) // a reader that left is its own loss
	}
}

// hostPattern is what may stand as a host in the policy: a name or an address with an optional port. A Host header
// that is anything else is left out, so that it cannot add to the policy.
var hostPattern = regexp.MustCompile(`^(?:[A-Za-z0-9.-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?$`)

// policy is the Content-Security-Policy of the page. The socket's address is named beside 'self', which older
// Safari does not match with it. Whether the way here was TLS is not known behind a proxy, so both schemes are.
func (h *handler) policy(r *http.Request) string {
	connect := "'self'"
	if hostPattern.MatchString(r.Host) {
		if r.TLS == nil {
			connect += " ws://" + r.Host
		}
		connect += " wss://" + r.Host
	}
	return "default-src 'none'; script-src 'self'; style-src 'self'; connect-src " + connect +
		"; img-src 'self' blob: data:; font-src 'self'; base-uri 'none'; form-action 'none'; frame-src 'none'" +
		"; frame-ancestors " + h.ancestors + "; require-trusted-types-for 'script'; trusted-types 'none'"
}

// ancestors turns origins into the value of frame-ancestors.
func ancestors(origins []string) string {
	if len(origins) == 0 {
		return "'self'"
	}
	var ok []string
	for _, o := range origins {
		if o = strings.TrimSuffix(o, "/"); isOrigin(o) {
			ok = append(ok, o)
		}
	}
	if len(ok) == 0 {
		return "'none'"
	}
	return strings.Join(ok, " ")
}

// isOrigin says whether o is scheme, host and port of a web page and nothing else.
func isOrigin(o string) bool {
	u, err := url.Parse(o)
	return err == nil && (u.Scheme == "https" || u.Scheme == "http") && hostPattern.MatchString(u.Host) &&
		o == u.Scheme+"://"+u.Host
}

// matches implements If-None-Match: weak comparison of a list, or any (RFC 9110, 13.1.2).
func matches(header, etag string) bool {
	for _, tag := range strings.Split(header, ",") {
		tag = strings.TrimSpace(tag)
		if tag == "*" || strings.TrimPrefix(tag, "W/") == etag {
			return true
		}
	}
	return false
}

// acceptsGzip reads Accept-Encoding as far as it matters here: gzip named and not refused with q=0.
func acceptsGzip(header string) bool {
	for _, part := range strings.Split(header, ",") {
		coding, params, _ := strings.Cut(part, ";")
		if !strings.EqualFold(strings.TrimSpace(coding), "gzip") {
			continue
		}
		q, ok := strings.CutPrefix(strings.ReplaceAll(params, " ", ""), "q=")
		if !ok {
			return true
		}
		weight, err := strconv.ParseFloat(q, 64)
		return err == nil && weight > 0
	}
	return false
}
