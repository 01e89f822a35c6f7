package llm

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"mime"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"
)

// dify speaks with one app of Dify: chatbot, agent, new agent or chatflow.
//
// Dify keeps the conversation itself and has a prompt of its own. So a request carries only what that conversation has
// not seen, see query. The length of answers is the app's own matter: Request.MaxOutput, Continue and the Config's
// Model are not sent.
//
// Closing the connection does not end a run, which goes on and costs. So whenever Stream leaves a run before its end, it
// closes the connection and has the run stopped, once and under the same user. That takes up to stopLimit and is not
// waited for by Stream but by close; a Stream that comes after close waits itself.
type dify struct {
	config Config
	base   *url.URL   // ends in a slash
	params url.Values // of the settings, which every request repeats
	client *http.Client
	files  *http.Client // never sends the key
	idle   func()

	mu     sync.Mutex
	closed bool           // guarded by mu
	stops  sync.WaitGroup // requests to stop; added to under mu while not closed
}

const (
	stopLimit = 5 * time.Second
	// anonymous stands for an end user without an id, since Dify demands one.
	anonymous = "anonymous"
)

// errConversationLost marks errors after which the same request is worth one more try, right away, without its
// Conversation: Dify does not know it, or will not go on with it.
var errConversationLost = errors.New("the provider does not go on with this conversation")

func newDify(c Config, transport http.RoundTripper) (*dify, error) {
	c = c.withDefaults()
	address, params, err := difyBase(c.Endpoint)
	if err != nil {
		return nil, err
	}
	base, err := url.Parse(address)
	if err != nil {
		return nil, errors.New("endpoint is not an address")
	}
	p := &dify{config: c, base: base, params: params}
	p.client, p.idle = newClient(c, transport)
	p.files = &http.Client{Transport: p.client.Transport, CheckRedirect: p.redirect}
	return p, nil
}

// close waits for requests to stop that are under way, at most stopLimit, and gives up idle connections.
func (p *dify) close() {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.stops.Wait()
	p.idle()
}

// Stream implements Provider.
func (p *dify) Stream(ctx context.Context, req Request, emit func(Delta) error) (Result, error) {
	reqCtx, dog := newWatchdog(ctx, p.config)
	defer dog.stop()
	c := p.newCall(dog, req, emit)
	err := c.send(reqCtx, p, req)
	if err == nil {
		err = c.read(ctx)
	}
	dog.stop() // closes the connection
	if c.task != "" && !c.ended() {
		p.abandon(ctx, c.task, c.user)
	}
	return c.result(ctx, err)
}

// difyMessage is the body of a request.
type difyMessage struct {
	Inputs         map[string]string `json:"inputs"`
	Query          string            `json:"query"`
	ResponseMode   string            `json:"response_mode"`
	ConversationID string            `json:"conversation_id"`
	User           string            `json:"user"`
	Files          []difyAttachment  `json:"files,omitempty"`
	AutoName       bool              `json:"auto_generate_name"`
}

// send uploads what goes with the question and asks it. Without an error there is a stream to read.
func (c *difyCall) send(ctx context.Context, p *dify, req Request) error {
	text, files := p.query(req)
	body := difyMessage{Inputs: p.config.Inputs, Query: text, ResponseMode: "streaming", ConversationID: c.known, User: c.user}
	if body.Inputs == nil {
		body.Inputs = map[string]string{} // Dify demands an object
	}
	c.refused = true // until the question itself leaves, nothing has been asked
	for _, f := range files {
		a, err := p.attach(ctx, f, c.user)
		if err != nil {
			return c.fault(err)
		}
		body.Files = append(body.Files, a)
	}
	raw, err := json.Marshal(body)
	if err != nil {
		return newError(KindInvalid, errors.New("the request cannot be written"))
	}
	r, err := p.request(ctx, "chat-messages", "application/json", bytes.NewReader(raw))
	if err != nil {
		return err
	}
	r.Header.Set("Accept", "text/event-stream")
	c.refused = false
	c.dog.sent.Store(false)    // uploads have left; this has not
	res, err := p.client.Do(r) //nolint:bodyclose // open or read closes it
	if err != nil {
		return newError(KindNetwork, withoutAddress(err))
	}
	return c.open(res)
}

// open takes a response that is an event stream, and turns every other one into an *Error.
func (c *difyCall) open(res *http.Response) error {
	c.requestID = requestID(res.Header)
	c.body = &watched{ReadCloser: res.Body, dog: c.dog}
	media, _, _ := mime.ParseMediaType(res.Header.Get("Content-Type"))
	if res.StatusCode < 300 && media != "text/html" && media != "application/json" {
		return nil
	}
	c.refused = true
	defer func() { _ = res.Body.Close() }()
	return c.fault(difyRefusal(res, c.body))
}

// request makes a request of the app's interface.
func (p *dify) request(ctx context.Context, path, contentType string, body io.Reader) (*http.Request, error) {
	u := p.base.JoinPath(path)
	u.RawQuery = p.params.Encode()
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, u.String(), body)
	if err != nil {
		return nil, newError(KindInvalid, errors.New("the request cannot be made"))
	}
	r.Header.Set("User-Agent", userAgent)
	r.Header.Set("Content-Type", contentType)
	if p.config.APIKey != "" {
		r.Header.Set("Authorization", "Bearer "+p.config.APIKey)
	}
	for k, v := range p.config.Headers {
		r.Header.Set(k, v)
	}
	return r, nil
}

// abandon has a run stopped that nobody listens to any more. What Dify says to that is not looked at: it answers
// success to everything, and there is nothing left to be done.
func (p *dify) abandon(ctx context.Context, task, user string) {
	stop := func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopLimit)
		defer cancel()
		raw, err := json.Marshal(map[string]string{"user": user})
		if err != nil {
			return
		}
		r, err := p.request(ctx, "chat-messages/"+task+"/stop", "application/json", bytes.NewReader(raw))
		if err != nil {
			return
		}
		if res, err := p.client.Do(r); err == nil {
			_, _ = io.Copy(io.Discard, io.LimitReader(res.Body, maxErrorBody)) // so that the connection can be used again
			_ = res.Body.Close()
		}
	}
	p.mu.Lock()
	open := !p.closed
	if open {
		p.stops.Go(stop)
	}
	p.mu.Unlock()
	if !open {
		stop()
	}
}

// difyID returns an id of Dify's if it can be repeated in addresses and logs, else "".
func difyID(s string) string {
	if strings.ContainsAny(s, ".:") {
		return ""
	}
	return word(s)
}
