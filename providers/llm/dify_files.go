package llm

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"io"
	"mime/multipart"
	"net/http"
	"net/textproto"
	"net/url"
	"path"
	"slices"
	"strings"
	"time"
)

const (
	difyFileLimit = 60 * time.Second // for fetching a file of an answer as a whole
	difyRedirects = 3
)

// difyAttachment is a file of a question.
type difyAttachment struct {
	Type     string `json:"type"`
	Method   string `json:"transfer_method"`
	UploadID string `json:"upload_file_id,omitempty"`
	URL      string `json:"url,omitempty"`
}

// attach gives a file to Dify, or tells where it is if we do not have it. user must be that of the question.
func (p *dify) attach(ctx context.Context, f File, user string) (difyAttachment, error) {
	a := difyAttachment{Type: difyType(f)}
	if f.Open == nil {
		a.Method, a.URL = "remote_url", f.URL
		return a, nil
	}
	content, err := f.Open(ctx)
	if err != nil {
		return a, &Error{Kind: KindInvalid, cause: errors.New("a file of the question cannot be opened")}
	}
	body, contentType, err := difyForm(f, user, content)
	if err != nil {
		_ = content.Close()
		return a, newError(KindInvalid, errors.New("the request cannot be written"))
	}
	r, err := p.request(ctx, "files/upload", contentType, body)
	if err != nil {
		_ = body.Close()
		return a, err
	}
	res, err := p.client.Do(r)
	if err != nil {
		return a, newError(KindNetwork, withoutAddress(err))
	}
	defer func() { _ = res.Body.Close() }()
	if res.StatusCode >= 300 {
		return a, difyRefusal(res, res.Body)
	}
	var made struct {
		ID string `json:"id"`
	}
	text, err := io.ReadAll(io.LimitReader(res.Body, maxErrorBody))
	if err != nil {
		return a, newError(KindNetwork, withoutAddress(err))
	}
	if lenient(text, &made); made.ID == "" {
		return a, &Error{Kind: KindInvalid, Status: res.StatusCode, cause: errors.New("the upload was given no id")}
	}
	a.Method, a.UploadID = "local_file", made.ID
	return a, nil
}

// difyForm makes a form of a file, which is read while it is sent. Whoever sends it closes the file, and that may be
// after an answer has come.
func difyForm(f File, user string, content io.ReadCloser) (body io.ReadCloser, contentType string, err error) {
	name, media := difyName(f)
	var head bytes.Buffer
	w := multipart.NewWriter(&head)
	if err := w.WriteField("user", user); err != nil {
		return nil, "", err
	}
	h := textproto.MIMEHeader{}
	h.Set("Content-Disposition", multipart.FileContentDisposition("file", name))
	h.Set("Content-Type", media)
	if _, err := w.CreatePart(h); err != nil {
		return nil, "", err
	}
	n := head.Len()
	if err := w.Close(); err != nil {
		return nil, "", err
	}
	form := head.Bytes()
	body = struct {
		io.Reader
		io.Closer
	}{io.MultiReader(bytes.NewReader(form[:n]), content, bytes.NewReader(form[n:])), content}
	return body, w.FormDataContentType(), nil
}

// difyName is what a file is called for Dify, which looks at names as well as at types, and knows sound in a container
// of MPEG 4 only as m4a: everything else with that name is a film to it.
func difyName(f File) (name, media string) {
	a := describe(f)
	switch a.mime {
	case "audio/mp4", "audio/x-m4a", "audio/mp4a-latm", "audio/m4a":
		name = a.filename()
		return strings.TrimSuffix(name, path.Ext(name)) + ".m4a", "audio/m4a"
	case "":
		return a.filename(), "application/octet-stream"
	default:
		return a.filename(), a.mime
	}
}

// difyType is Dify's word for what kind of file it is.
func difyType(f File) string {
	media := describe(f).mime
	kind, _, _ := strings.Cut(media, "/")
	switch kind {
	case "image", "audio", "video":
		return kind
	case "text":
		return "document"
	}
	switch {
	case media == "application/pdf", media == "application/msword", media == "application/epub+zip", media == "application/xml",
		strings.HasPrefix(media, "application/vnd.openxmlformats-officedocument."), strings.HasPrefix(media, "application/vnd.ms-"):
		return "document"
	}
	return "custom"
}

// difyFile is a file in an event. Those of message_end have most members, and may be the user's own.
type difyFile struct {
	URL       string `json:"url"`
	BelongsTo string `json:"belongs_to"`
	Method    string `json:"transfer_method"`
	Name      string `json:"filename"`
	MIME      string `json:"mime_type"`
}

// offer shows a file that the app has made, once: it may be told of twice, under different signatures.
func (c *difyCall) offer(f difyFile) error {
	if f.URL == "" || f.BelongsTo == "user" || f.Method != "" && f.Method != "tool_file" {
		return nil
	}
	u := c.app.address(f.URL)
	if u == nil {
		return nil
	}
	if place := u.Host + u.Path; c.files[place] {
		return nil
	} else {
		c.files[place] = true
	}
	out := File{Name: baseName(cmp.Or(f.Name, u.Path)), MIME: f.MIME, URL: u.String()}
	out.MIME = describe(out).mime
	if c.app.mayFetch(u) {
		out.Open = func(ctx context.Context) (io.ReadCloser, error) { return c.app.fetch(ctx, u) }
	}
	return c.file(out)
}

// address reads where a file is, which may be written without the host. nil: nothing that anybody could fetch.
func (p *dify) address(s string) *url.URL {
	u, err := p.base.Parse(s)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil {
		return nil
	}
	return u
}

// mayFetch says whether an address is on a host that the settings name.
func (p *dify) mayFetch(u *url.URL) bool {
	if u.Scheme == p.base.Scheme && difySameHost(u, p.base) {
		return true
	}
	return slices.ContainsFunc(p.config.Hosts, func(h string) bool {
		return strings.EqualFold(h, u.Hostname()) || strings.EqualFold(h, u.Host)
	})
}

func difySameHost(a, b *url.URL) bool {
	return strings.EqualFold(a.Hostname(), b.Hostname()) && difyPort(a) == difyPort(b)
}

func difyPort(u *url.URL) string {
	switch {
	case u.Port() != "":
		return u.Port()
	case u.Scheme == "https":
		return "443"
	default:
		return "80"
	}
}

// redirect follows redirects of files to hosts that the settings name.
func (p *dify) redirect(r *http.Request, via []*http.Request) error {
	if len(via) > difyRedirects || !p.mayFetch(r.URL) {
		return errors.New("the file is elsewhere")
	}
	return nil
}

// fetch opens a file of an answer. It sends no key: the address itself is what permits it. Errors do not hold it.
func (p *dify) fetch(ctx context.Context, u *url.URL) (io.ReadCloser, error) {
	ctx, cancel := context.WithTimeout(ctx, difyFileLimit)
	fail := func(e *Error) (io.ReadCloser, error) {
		cancel()
		e.Provider = p.config.ID
		return nil, e
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return fail(newError(KindInvalid, errors.New("the request cannot be made")))
	}
	r.Header.Set("User-Agent", userAgent)
	res, err := p.files.Do(r)
	switch {
	case err != nil:
		return fail(newError(KindNetwork, withoutAddress(err)))
	case res.StatusCode != http.StatusOK:
		_ = res.Body.Close()
		kind := classify("", "", res.StatusCode)
		return fail(&Error{Kind: kind, Retryable: kind.retryable(), Status: res.StatusCode})
	case res.ContentLength > maxAnswerFile:
		_ = res.Body.Close()
		return fail(newError(KindTooLarge, errFileTooLarge))
	}
	return &difyBody{capped: capped{ReadCloser: res.Body, left: maxAnswerFile, cancel: cancel}, provider: p.config.ID}, nil
}

// difyBody is a file that is being fetched.
type difyBody struct {
	capped
	provider string
}

func (b *difyBody) Read(p []byte) (int, error) {
	n, err := b.capped.Read(p)
	if err == nil || errors.Is(err, io.EOF) {
		return n, err
	}
	e := newError(KindNetwork, withoutAddress(err))
	if errors.Is(err, errFileTooLarge) {
		e = newError(KindTooLarge, err)
	}
	e.Provider = b.provider
	return n, e
}
