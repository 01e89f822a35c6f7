package llm

import (
	"net"
	"net/http"
	"time"

	"github.com/openai/openai-go/v3/option"
)

// newClient is the client for one provider, and what gives its idle connections up. It has no timeout but those of
// watchdog. A nil transport is a pool of connections of its own.
func newClient(c Config, transport http.RoundTripper) (*http.Client, func()) {
	release := func() {}
	if transport == nil {
		t := newTransport(c.Connect)
		transport, release = t, t.CloseIdleConnections
	}
	return &http.Client{
		Transport: transport,
		// The key is meant for this address only: a redirect is an error.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}, release
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

// userAgent is how we call ourselves.
const userAgent = "Chatbox"

// stainless are headers in which the SDKs tell providers about the machine.
func stainless() []string {
	var out []string
	for _, h := range []string{"Lang", "Package-Version", "Os", "Arch", "Runtime", "Runtime-Version", "Retry-Count", "Timeout"} {
		out = append(out, "X-Stainless-"+h)
	}
	return out
}

// openAIOptions are those of all services of OpenAI. The services are made without the client that reads the
// environment, and repeat nothing.
func openAIOptions(c Config, client *http.Client) ([]option.RequestOption, error) {
	base, query, err := openAIBase(c.Endpoint)
	if err != nil {
		return nil, err
	}
	opts := []option.RequestOption{
		option.WithBaseURL(base),
		option.WithHTTPClient(client),
		option.WithMaxRetries(0),
		option.WithHeader("User-Agent", userAgent),
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
	return opts, nil
}

// openAIStream are the options that turn a call of a service into one whose answer is a stream for raw. The SDK's own
// streaming calls leave no room for a decoder of ours.
func openAIStream(c *call, raw **http.Response) []option.RequestOption {
	return []option.RequestOption{option.WithHeader("Accept", "text/event-stream"), option.WithMiddleware(c.respond),
		option.WithJSONSet("stream", true), option.WithResponseBodyInto(raw)}
}

// output is how many tokens an answer may have at most, or 0 where neither the settings nor the request say.
func (c Config) output(req Request) int {
	if req.MaxOutput > 0 && (c.MaxOutput == 0 || req.MaxOutput < c.MaxOutput) {
		return req.MaxOutput
	}
	return c.MaxOutput
}
