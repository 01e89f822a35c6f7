package llm

import (
	"context"
	"net"
	"net/http"
	"time"

	"github.com/openai/openai-go/v3"
	"github.com/openai/openai-go/v3/option"
	"github.com/openai/openai-go/v3/packages/param"
)

// openAI speaks OpenAI's Chat Completions with one model. It repeats nothing, reads no environment variable
// (the service is made without the client that does), and has no timeout but those of watchdog.
type openAI struct {
	config  Config
	service openai.ChatCompletionService
	close   func()
}

func newOpenAI(c Config, transport http.RoundTripper) (*openAI, error) {
	c = c.withDefaults()
	base, query, err := openAIBase(c.Endpoint)
	if err != nil {
		return nil, err
	}
	p := &openAI{config: c, close: func() {}}
	if transport == nil {
		t := newTransport(c.Connect)
		transport, p.close = t, t.CloseIdleConnections
	}
	client := &http.Client{
		Transport: transport,
		// The key is meant for this address only: a redirect is an error.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	opts := []option.RequestOption{
		option.WithBaseURL(base),
		option.WithHTTPClient(client),
		option.WithMaxRetries(0),
		option.WithHeader("User-Agent", "Chatbox"),
		option.WithHeader("Accept", "text/event-stream"),
	}
	for _, h := range []string{"Lang", "Package-Version", "Os", "Arch", "Runtime", "Runtime-Version", "Retry-Count", "Timeout"} {
		opts = append(opts, option.WithHeaderDel("X-Stainless-"+h))
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
	p.service = openai.NewChatCompletionService(opts...)
	return p, nil
}

// newTransport is a pool of connections to one provider. Responses are not compressed, so that tokens are not
// held back in a decompressor.
func newTransport(connect time.Duration) *http.Transport {
	return &http.Transport{
		Proxy:               http.ProxyFromEnvironment,
		DialContext:         (&net.Dialer{Timeout: connect, KeepAlive: 30 * time.Second}).DialContext,
		TLSHandshakeTimeout: connect,
		ForceAttemptHTTP2:   true,
		HTTP2:               &http.HTTP2Config{SendPingTimeout: 30 * time.Second, PingTimeout: 15 * time.Second},
		MaxIdleConnsPerHost: 64,
		IdleConnTimeout:     90 * time.Second,
		DisableCompression:  true,
	}
}

// Stream implements Provider.
func (p *openAI) Stream(ctx context.Context, req Request, emit func(Delta) error) (Result, error) {
	reqCtx, dog := newWatchdog(ctx, p.config)
	defer dog.stop()
	c := newCall(p.config, dog, req, emit)

	// New with these options is NewStreaming with a decoder of our own.
	var raw *http.Response
	_, err := p.service.New(reqCtx, p.params(req), option.WithMiddleware(c.respond),
		option.WithJSONSet("stream", true), option.WithResponseBodyInto(&raw))
	if err != nil {
		return c.end(ctx, err)
	}
	c.done, err = stream(ctx, raw, c.chunk)
	return c.end(ctx, err)
}

// chunk takes one chunk of the stream. Any part of it may be missing. An error is emit's.
func (c *call) chunk(k openai.ChatCompletionChunk) error {
	if k.JSON.Usage.Valid() { // on any chunk: some servers send it with the last choice
		u := k.Usage
		c.usage = &Usage{In: u.PromptTokens, Out: u.CompletionTokens, Total: max(u.TotalTokens, u.PromptTokens+u.CompletionTokens),
			Cached: u.PromptTokensDetails.CachedTokens}
	}
	for _, choice := range k.Choices {
		if choice.Index != 0 {
			continue // we ask for one
		}
		if reasons(choice.Delta) {
			c.dog.alive()
		}
		if t := choice.Delta.Refusal; t != "" {
			c.refuse = true
			if err := c.text(t); err != nil {
				return err
			}
		}
		if err := c.text(choice.Delta.Content); err != nil {
			return err
		}
		if choice.FinishReason != "" {
			c.finish = finishOf(choice.FinishReason)
			c.dog.finished()
		}
	}
	return nil
}

// reasons says whether a delta holds reasoning, under the names that compatible servers use. It is not shown,
// but it is a sign of life.
func reasons(d openai.ChatCompletionChunkChoiceDelta) bool {
	for _, name := range []string{"reasoning_content", "reasoning"} {
		if raw := d.JSON.ExtraFields[name].Raw(); raw != "" && raw != "null" && raw != `""` {
			return true
		}
	}
	return false
}

func finishOf(reason string) Finish {
	switch reason {
	case "length":
		return FinishLength
	case "content_filter":
		return FinishFilter
	default:
		return FinishStop
	}
}

func (p *openAI) params(req Request) openai.ChatCompletionNewParams {
	body := openai.ChatCompletionNewParams{Model: p.config.Model}
	for _, m := range req.Messages {
		switch {
		case m.Role == RoleAssistant:
			body.Messages = append(body.Messages, openai.AssistantMessage(m.Content))
		case m.Role == RoleSystem && p.config.SystemRole == developerRole:
			body.Messages = append(body.Messages, openai.DeveloperMessage(m.Content))
		case m.Role == RoleSystem:
			body.Messages = append(body.Messages, openai.SystemMessage(m.Content))
		default:
			body.Messages = append(body.Messages, openai.UserMessage(m.Content))
		}
	}
	if req.Continue {
		p.goOn(&body)
	}
	if u := p.config.IncludeUsage; u == nil || *u {
		body.StreamOptions.IncludeUsage = param.NewOpt(true)
	}
	limit := p.config.MaxOutput
	if req.MaxOutput > 0 && (limit == 0 || req.MaxOutput < limit) {
		limit = req.MaxOutput
	}
	if limit > 0 {
		if p.config.MaxTokensField == maxTokens {
			body.MaxTokens = param.NewOpt(int64(limit))
		} else {
			body.MaxCompletionTokens = param.NewOpt(int64(limit))
		}
	}
	if req.User != "" {
		body.User = param.NewOpt(req.User)
	}
	return body
}

// goOn asks for what follows the last message, in the words of the server. None of them is part of OpenAI's own API.
func (p *openAI) goOn(body *openai.ChatCompletionNewParams) {
	switch p.config.Continue {
	case ContinuePrefix:
		if n := len(body.Messages); n > 0 && body.Messages[n-1].OfAssistant != nil {
			body.Messages[n-1].OfAssistant.SetExtraFields(map[string]any{"prefix": true})
		}
	case ContinueFinalMessage:
		body.SetExtraFields(map[string]any{"continue_final_message": true, "add_generation_prompt": false})
	}
}
