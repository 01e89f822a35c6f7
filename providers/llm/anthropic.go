package llm

import (
	"context"
	"net/http"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/anthropics/anthropic-sdk-go"
	"github.com/anthropics/anthropic-sdk-go/option"
	"github.com/anthropics/anthropic-sdk-go/packages/param"
)

// defaultAnthropicOutput is how many tokens an answer may have where nobody says: the interface demands a number, and
// this is the largest that every model of Anthropic accepts.
const defaultAnthropicOutput = 4096

// anthropicAPI speaks Anthropic's Messages with one model. It repeats nothing, reads no environment variable (the
// client is made without the function that does), traces nothing, and has no timeout but those of watchdog.
type anthropicAPI struct {
	config Config
	client anthropic.Client
	close  func()
}

func newAnthropic(c Config, transport http.RoundTripper) (*anthropicAPI, error) {
	c = c.withDefaults()
	base, query, err := anthropicBase(c.Endpoint)
	if err != nil {
		return nil, err
	}
	client, release := newClient(c, transport)
	opts := []option.RequestOption{
		option.WithBaseURL(base),
		option.WithHTTPClient(client),
		option.WithMaxRetries(0),
		option.WithoutOpenTelemetry(),
		option.WithOpenTelemetryPropagation(false),
		option.WithHeader("User-Agent", userAgent),
		option.WithHeader("Accept", "text/event-stream"),
	}
	for _, h := range stainless() {
		opts = append(opts, option.WithHeaderDel(h))
	}
	if c.APIKey != "" {
		opts = append(opts, option.WithAPIKey(c.APIKey))
	}
	for k, values := range query {
		for _, v := range values {
			opts = append(opts, option.WithQueryAdd(k, v))
		}
	}
	for k, v := range c.Headers {
		opts = append(opts, option.WithHeader(k, v))
	}
	return &anthropicAPI{config: c, client: anthropic.Client{Options: opts}, close: release}, nil
}

// Stream implements Provider.
func (p *anthropicAPI) Stream(ctx context.Context, req Request, emit func(Delta) error) (Result, error) {
	reqCtx, dog := newWatchdog(ctx, p.config)
	defer dog.stop()
	a := &anthropicAnswer{call: newCall(p.config, dog, req, emit)}
	params, err := p.params(reqCtx, req)
	if err != nil {
		return a.end(ctx, err)
	}
	if req.Continue {
		a.tail = trailingSpace(req.Messages)
	}
	var raw *http.Response
	err = p.client.Post(reqCtx, "v1/messages", params, &raw, option.WithMiddleware(a.respond), option.WithJSONSet("stream", true))
	if err != nil {
		return a.end(ctx, err)
	}
	_, err = stream(ctx, raw, a.event)
	return a.end(ctx, err)
}

// anthropicAnswer is an answer under way.
type anthropicAnswer struct {
	*call
	stop    anthropic.StopReason // empty: not said yet
	counted bool                 // the usage is that of the whole answer
	so      Usage                // as far as reported
	tail    string               // white space that was shown before and may come again, see trailingSpace
}

// event takes one event of the stream. Any part of it may be missing; kinds that we do not know are none of our
// business. A ping shows that the connection lives, not that the model does.
func (a *anthropicAnswer) event(e anthropic.MessageStreamEventUnion) error {
	switch e.Type {
	case "message_start":
		u := e.Message.Usage
		a.count(u.InputTokens, u.CacheCreationInputTokens, u.CacheReadInputTokens)
	case "content_block_start":
		if e.ContentBlock.Type == "text" {
			return a.say(e.ContentBlock.Text)
		}
		a.dog.alive() // it thinks, which it may do without a word
	case "content_block_delta":
		if e.Delta.Type == "text_delta" {
			return a.say(e.Delta.Text)
		}
		a.dog.alive() // thoughts and their signatures, which are not shown
	case "message_delta":
		a.delta(e)
	case "message_stop":
		a.finish, a.done = finishOfAnthropic(a.stop), true
		return errComplete
	}
	return nil
}

// delta takes stop reason and usage. The counts are those of the whole answer so far: they replace what was reported
// before. Those of the input may be missing.
func (a *anthropicAnswer) delta(e anthropic.MessageStreamEventUnion) {
	if e.Delta.StopReason != "" {
		a.stop = e.Delta.StopReason
	}
	if u := e.Usage; e.JSON.Usage.Valid() {
		if u.InputTokens > 0 || u.CacheCreationInputTokens > 0 || u.CacheReadInputTokens > 0 {
			a.count(u.InputTokens, u.CacheCreationInputTokens, u.CacheReadInputTokens)
		}
		a.so.Out, a.counted = u.OutputTokens, u.JSON.OutputTokens.Valid()
	}
	if a.counted && a.stop != "" {
		u := counted(a.so.In, a.so.Out, 0, a.so.Cached)
		a.usage = &u
	}
}

// count takes the counts of the input, which Anthropic reports in three disjoint parts.
func (a *anthropicAnswer) count(fresh, written, cached int64) {
	a.so.In, a.so.Cached = max(fresh, 0)+max(written, 0)+max(cached, 0), max(cached, 0)
	if a.so.In > 0 {
		in := a.so
		a.input = &in
	}
}

// say shows a text, but for the white space that was shown already.
func (a *anthropicAnswer) say(t string) error {
	for a.tail != "" && t != "" {
		want, n := utf8.DecodeRuneInString(a.tail)
		if got, _ := utf8.DecodeRuneInString(t); got != want {
			a.tail = ""
			break
		}
		a.tail, t = a.tail[n:], t[n:]
	}
	return a.text(t)
}

func finishOfAnthropic(reason anthropic.StopReason) Finish {
	switch reason {
	case anthropic.StopReasonMaxTokens, anthropic.StopReasonModelContextWindowExceeded,
		anthropic.StopReasonPauseTurn: // the model was interrupted, and would go on if asked
		return FinishLength
	case anthropic.StopReasonRefusal:
		return FinishRefusal
	default:
		return FinishStop
	}
}

func (p *anthropicAPI) params(ctx context.Context, req Request) (anthropic.MessageNewParams, error) {
	body := anthropic.MessageNewParams{Model: p.config.Model, MaxTokens: defaultAnthropicOutput}
	if limit := p.config.output(req); limit > 0 {
		body.MaxTokens = int64(limit)
	}
	if req.User != "" {
		body.Metadata.UserID = param.NewOpt(req.User)
	}
	t := turns{files: newAttachments(p.config)}
	for i, m := range req.Messages {
		if req.Continue && i == len(req.Messages)-1 && m.Role == RoleAssistant {
			m.Content = strings.TrimRightFunc(m.Content, unicode.IsSpace) // white space at its end is refused
		}
		if err := t.add(ctx, m); err != nil {
			return body, err
		}
	}
	t.mark()
	body.System, body.Messages = t.system, t.messages
	return body, nil
}
