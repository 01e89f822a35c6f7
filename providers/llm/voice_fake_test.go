package llm

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// voiceAsk is what a voice service of a test was asked.
type voiceAsk struct {
	path, auth string
	query      string
	fields     map[string]string // of a form, or of an object
	name, mime string            // of the file
	audio      string
	length     int64
}

// ear is a voice service. It notes what it is asked and answers with the next of its turns; the last one stays.
type ear struct {
	mu    sync.Mutex
	asked []voiceAsk
	turns []http.HandlerFunc
}

func (e *ear) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s := voiceAsk{path: r.URL.Path, query: r.URL.RawQuery, auth: r.Header.Get("Authorization"), fields: map[string]string{}, length: r.ContentLength}
	if strings.HasPrefix(r.Header.Get("Content-Type"), "multipart/") {
		form, err := r.MultipartReader()
		for err == nil {
			part, perr := form.NextPart()
			if perr != nil {
				break
			}
			b, _ := io.ReadAll(part)
			if part.FormName() == "file" {
				s.name, s.mime, s.audio = part.FileName(), part.Header.Get("Content-Type"), string(b)
			} else {
				s.fields[part.FormName()] = string(b)
			}
		}
	} else {
		var object map[string]any
		_ = json.NewDecoder(r.Body).Decode(&object)
		for k, v := range object {
			s.fields[k], _ = v.(string)
		}
	}
	e.mu.Lock()
	e.asked = append(e.asked, s)
	turn := e.turns[0]
	if len(e.turns) > 1 {
		e.turns = e.turns[1:]
	}
	e.mu.Unlock()
	turn(w, r)
}

func (e *ear) all() []voiceAsk {
	e.mu.Lock()
	defer e.mu.Unlock()
	return append([]voiceAsk(nil), e.asked...)
}

// says answers with a status, a body and headers ("Name: value").
func says(status int, body string, headers ...string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		for _, line := range headers {
			name, value, _ := strings.Cut(line, ": ")
			w.Header().Set(name, value)
		}
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
	}
}

// sounds answers with audio.
func sounds(body string) http.HandlerFunc {
	return says(http.StatusOK, body, "Content-Type: audio/mpeg")
}

// newTestVoice returns a voice on a service that answers in turns.
func newTestVoice(t *testing.T, typ string, turns []http.HandlerFunc, change ...func(*VoiceOptions)) (*ear, *Voice) {
	t.Helper()
	e := &ear{turns: turns}
	address := serve(t, e)
	service := VoiceService{Type: typ, Endpoint: address, APIKey: testKey}
	o := VoiceOptions{
		Transcriber: TranscriberConfig{VoiceService: service}, Speaker: SpeakerConfig{VoiceService: service, Enabled: true}, BackoffBase: time.Millisecond,
	}
	for _, f := range change {
		f(&o)
	}
	return e, newVoice(t, o)
}

func newVoice(t *testing.T, o VoiceOptions) *Voice {
	t.Helper()
	v, err := NewVoice(o)
	require.NoError(t, err)
	t.Cleanup(v.Close)
	return v
}

// tape is a recording that counts how often it was opened and closed.
type tape struct {
	mu             sync.Mutex
	opened, closed int
	audio          io.Reader // of the next opening; nil: text
	text           string
}

func (p *tape) recording(mime string) Recording {
	return Recording{MIME: mime, Size: int64(len(p.text)), Open: func(context.Context) (io.ReadCloser, error) {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.opened++
		if p.audio != nil {
			return &reel{Reader: p.audio, tape: p}, nil
		}
		return &reel{Reader: strings.NewReader(p.text), tape: p}, nil
	}}
}

type reel struct {
	io.Reader
	tape *tape
}

func (r *reel) Close() error {
	r.tape.mu.Lock()
	defer r.tape.mu.Unlock()
	r.tape.closed++
	return nil
}

func (p *tape) counts() (opened, closed int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.opened, p.closed
}

// listened is a log in memory.
func listened(o *VoiceOptions) *bytes.Buffer {
	var b bytes.Buffer
	o.Log = slog.New(slog.NewJSONHandler(&b, &slog.HandlerOptions{Level: slog.LevelDebug}))
	return &b
}
