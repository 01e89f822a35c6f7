package llm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// stored is a file of a user's, whose content counts how often it was closed.
func stored(name, mime, content string, closed *atomic.Int32) File {
	return File{Name: name, MIME: mime, Open: func(context.Context) (io.ReadCloser, error) {
		return struct {
			io.Reader
			io.Closer
		}{strings.NewReader(content), closer(func() error { closed.Add(1); return nil })}, nil
	}}
}

func readsAll(c *Config) { c.Vision, c.Audio, c.Files = true, true, []string{"pdf"} }

type closer func() error

func (f closer) Close() error { return f() }

// Files of a question are uploaded under the user of the question, or named by address where there is no more than that.
func TestDify_filesOfAQuestion_areUploaded(t *testing.T) {
	var closed atomic.Int32
	a := newDifyApp(difyAnswer(200, difyRecorded(t)["chatbot"]))
	o := askDify(t.Context(), newDifySet(t, a, readsAll), Request{Messages: []Message{{Role: RoleUser, Content: "look", Files: []File{
		stored("cat \"1\".png", "image/png", "png", &closed), stored("voice", "audio/mp4", "m4a", &closed), {Name: "b.pdf", MIME: "application/pdf", URL: "http://store.test/b"},
	}}}})
	require.NoError(t, o.err)
	require.EqualValues(t, 2, closed.Load())
	uploads := a.requests("/files/upload")
	require.Len(t, uploads, 2)
	for i, want := range []struct{ name, mime, content string }{{"cat \"1\".png", "image/png", "png"}, {"voice.m4a", "audio/m4a", "m4a"}} {
		require.Equal(t, difyAsker, uploads[i].user)
		require.Equal(t, "Bearer "+testKey, uploads[i].key)
		h := uploads[i].form.File["file"][0]
		require.Equal(t, want.name, h.Filename)
		require.Equal(t, want.mime, h.Header.Get("Content-Type"))
		f, err := h.Open()
		require.NoError(t, err)
		content, err := io.ReadAll(f)
		require.NoError(t, err)
		require.Equal(t, want.content, string(content))
	}
	asked := a.requests("/chat-messages")[0].message
	require.Equal(t, "look", asked.Query)
	require.Equal(t, []difyAttachment{{Type: "image", Method: "local_file", UploadID: "upload-1"}, {Type: "audio", Method: "local_file", UploadID: "upload-1"},
		{Type: "document", Method: "remote_url", URL: "http://store.test/b"}}, asked.Files)
}

func TestDify_typesOfFiles(t *testing.T) {
	for f, want := range map[[2]string]string{
		{"a.png", ""}: "image", {"a", "image/webp"}: "image", {"a.mp4", "video/mp4"}: "video", {"a.mp4", "audio/mp4"}: "audio",
		{"a.mp3", "audio/mpeg"}: "audio", {"a.txt", "text/plain; charset=utf-8"}: "document", {"a.pdf", ""}: "document",
		{"a.docx", "application/vnd.openxmlformats-officedocument.wordprocessingml.document"}: "document", {"a.xls", "application/vnd.ms-excel"}: "document",
		{"a.zip", "application/zip"}: "custom", {"a", ""}: "custom",
	} {
		require.Equal(t, want, difyType(File{Name: f[0], MIME: f[1]}), "%q", f)
	}
}

// A file that cannot be uploaded ends the request before it is asked, and costs nothing.
func TestDify_uploadFails_nothingIsAsked(t *testing.T) {
	var closed atomic.Int32
	picture := stored("cat.png", "image/png", "png", &closed)
	broken := File{Name: "cat.png", Open: func(context.Context) (io.ReadCloser, error) { return nil, errors.New("confidential") }}
	for name, tt := range map[string]struct {
		file   File
		answer string
		kind   Kind
	}{
		"too large":        {picture, `{"code":"file_too_large","message":"","status":413}`, KindTooLarge},
		"without its code": {picture, `<html>`, KindTooLarge},
		"not to be opened": {broken, "", KindInvalid},
	} {
		t.Run(name, func(t *testing.T) {
			a := newDifyApp(difyAnswer(200, ""))
			a.upload = tt.answer
			o := askDify(t.Context(), newDifySet(t, a, readsAll), Request{Messages: []Message{{Role: RoleUser, Content: "look", Files: []File{tt.file}}}})
			require.Equal(t, tt.kind, o.kind())
			require.Equal(t, Usage{}, o.Usage)
			require.Empty(t, a.requests("/chat-messages"))
			require.NotContains(t, o.err.Error(), "confidential")
		})
	}
	require.EqualValues(t, 2, closed.Load())
}

// offered asks a question that is answered with one file and returns it.
func offered(t *testing.T, rt http.RoundTripper, address string, hosts ...string) File {
	t.Helper()
	frame := fmt.Sprintf(`data: {"event":"message_file","task_id":"t1","type":"image","belongs_to":"assistant","url":%q}`+"\n\n"+`data: {"event":"message_end"}`+"\n\n", address)
	app := newDifyApp(difyAnswer(200, frame))
	both := roundTripper(func(r *http.Request) (*http.Response, error) {
		if r.Method == http.MethodPost {
			return app.RoundTrip(r)
		}
		return rt.RoundTrip(r)
	})
	o := askDify(t.Context(), newDifySet(t, both, func(c *Config) { c.Hosts = hosts; c.Headers = map[string]string{"X-Secret": "secret-value"} }), Request{})
	require.NoError(t, o.err)
	require.Len(t, o.files, 1)
	return o.files[0]
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// Promise 24: files of answers are fetched from the app's host, and from those that the settings name, without the key. Of
// all others only the address is known.
func TestDify_filesOfAnswers_areFetchedFromKnownHostsOnly(t *testing.T) {
	store := roundTripper(func(r *http.Request) (*http.Response, error) {
		for _, h := range []string{"Authorization", "X-Secret"} {
			if r.Header.Get(h) != "" {
				return nil, errors.New("the key was sent")
			}
		}
		return response(r, 200, io.NopCloser(strings.NewReader("png")), "Content-Type: image/png"), nil
	})
	for address, want := range map[string]struct {
		url   string
		fetch bool
	}{
		"/files/tools/f1.png?sign=x":           {"http://llm.test/files/tools/f1.png?sign=x", true},
		"http://llm.test/files/f1.png":         {"http://llm.test/files/f1.png", true},
		"http://LLM.test:80/files/f1.png":      {"http://LLM.test:80/files/f1.png", true},
		"http://llm.test:8080/files/f1.png":    {"http://llm.test:8080/files/f1.png", false},
		"https://llm.test/files/f1.png":        {"https://llm.test/files/f1.png", false},
		"http://llm.test.evil.test/f1.png":     {"http://llm.test.evil.test/f1.png", false},
		"http://store.test/f1.png":             {"http://store.test/f1.png", true},
		"http://store.test:9000/f1.png":        {"http://store.test:9000/f1.png", true},
		"http://port.test:9000/f1.png":         {"http://port.test:9000/f1.png", true},
		"http://port.test:9001/f1.png":         {"http://port.test:9001/f1.png", false},
		"http://169.254.169.254/latest/f1.png": {"http://169.254.169.254/latest/f1.png", false},
		"//store.test/f1.png":                  {"http://store.test/f1.png", true},
	} {
		t.Run(address, func(t *testing.T) {
			f := offered(t, store, address, "Store.test", "port.test:9000")
			require.Equal(t, want.url, f.URL)
			require.Equal(t, "f1.png", f.Name)
			require.Equal(t, "image/png", f.MIME)
			require.Equal(t, want.fetch, f.Open != nil)
			if f.Open == nil {
				return
			}
			for range 2 { // it may be called again
				body, err := f.Open(t.Context())
				require.NoError(t, err)
				content, err := io.ReadAll(body)
				require.NoError(t, err)
				require.NoError(t, body.Close())
				require.Equal(t, "png", string(content))
			}
		})
	}
}

// Addresses that are none, and files that are the user's own, are not shown.
func TestDify_filesThatAreNone_areNotShown(t *testing.T) {
	for _, frame := range []string{
		`{"event":"message_file","url":"file:///etc/passwd"}`, `{"event":"message_file","url":"javascript:alert(1)"}`, `{"event":"message_file","url":"http://"}`,
		`{"event":"message_file","url":"http://user:password@llm.test/f"}`, `{"event":"message_file","url":"http://%zz"}`, `{"event":"message_file","url":""}`,
		`{"event":"message_file","belongs_to":"user","url":"http://llm.test/f"}`,
	} {
		o := askDify(t.Context(), newDifySet(t, newDifyApp(difyAnswer(200, "data: "+frame+"\n\n"+`data: {"event":"message_end"}`+"\n\n"))), Request{})
		require.NoError(t, o.err, frame)
		require.Empty(t, o.files, frame)
	}
}

// endless is a body without end.
type endless struct{}

func (endless) Read(p []byte) (int, error) { return len(p), nil }

func TestDify_fetchingAFile_hasLimits(t *testing.T) {
	redirect := func(to string) http.RoundTripper {
		return roundTripper(func(r *http.Request) (*http.Response, error) {
			if strings.Contains(r.URL.Host, "evil") || strings.HasSuffix(r.URL.Path, "/moved") {
				return response(r, 200, io.NopCloser(strings.NewReader("moved"))), nil
			}
			return response(r, 302, http.NoBody, "Location: "+to), nil
		})
	}
	for name, tt := range map[string]struct {
		store http.RoundTripper
		kind  Kind
	}{
		"elsewhere":  {redirect("http://evil.test/f?sign=confidential"), KindNetwork},
		"in circles": {redirect("http://llm.test/f"), KindNetwork},
		"not there":  {always(404, "confidential"), KindNotFound},
		"forbidden":  {always(403, "confidential"), KindPermission},
		"broken":     {roundTripper(func(*http.Request) (*http.Response, error) { return nil, errors.New("reset") }), KindNetwork},
		"said to be large": {roundTripper(func(r *http.Request) (*http.Response, error) {
			res := response(r, 200, io.NopCloser(endless{}))
			res.ContentLength = maxAnswerFile + 1
			return res, nil
		}), KindTooLarge},
		"large":     {roundTripper(func(r *http.Request) (*http.Response, error) { return response(r, 200, io.NopCloser(endless{})), nil }), KindTooLarge},
		"cut short": {script(step{text: "pn", err: io.ErrUnexpectedEOF}, step{err: io.ErrUnexpectedEOF}), KindNetwork},
	} {
		t.Run(name, func(t *testing.T) {
			body, err := offered(t, tt.store, "/f?sign=confidential").Open(t.Context())
			if err == nil {
				var n int64
				n, err = io.Copy(io.Discard, body)
				assert.LessOrEqual(t, n, int64(maxAnswerFile))
				assert.NoError(t, body.Close())
			}
			require.Equal(t, tt.kind, KindOf(err))
			require.NotContains(t, err.Error(), "confidential")
			require.Contains(t, err.Error(), `"m"`)
		})
	}
	t.Run("moved on the same host", func(t *testing.T) {
		body, err := offered(t, redirect("/moved"), "/f").Open(t.Context())
		require.NoError(t, err)
		content, err := io.ReadAll(body)
		require.NoError(t, err)
		require.NoError(t, body.Close())
		require.Equal(t, "moved", string(content))
	})
	t.Run("in time", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			start := time.Now()
			body, err := offered(t, script(step{text: "p"}, step{after: time.Hour}), "/f").Open(t.Context())
			require.NoError(t, err)
			_, err = io.ReadAll(body)
			require.Equal(t, KindNetwork, KindOf(err))
			require.NoError(t, body.Close())
			require.Equal(t, difyFileLimit, time.Since(start))
		})
	})
}
