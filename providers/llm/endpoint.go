package llm

import (
	"errors"
	"net/url"
	"strings"
)

// Base addresses that are used where the settings name none.
const (
	defaultOpenAIEndpoint    = "https://api.openai.com/v1"
	defaultAnthropicEndpoint = "https://api.anthropic.com"
	defaultDifyEndpoint      = "https://api.dify.ai/v1"
)

// version is the part of the path that all three interfaces share. People write base addresses with it and without it.
const version = "/v1"

// defaultEndpoint is the provider's own address.
func defaultEndpoint(typ string) string {
	switch typ {
	case TypeAnthropic:
		return defaultAnthropicEndpoint
	case TypeDify:
		return defaultDifyEndpoint
	default:
		return defaultOpenAIEndpoint
	}
}

// needsKey says whether an address is that of a service which answers nobody without a key.
func needsKey(endpoint string) bool {
	u, err := parseEndpoint(endpoint)
	if err != nil {
		return false
	}
	switch strings.ToLower(u.Hostname()) {
	case "api.openai.com", "api.anthropic.com", "api.dify.ai":
		return true
	default:
		return false
	}
}

// parseEndpoint reads a base address. Errors do not repeat it: it may hold a key.
func parseEndpoint(endpoint string) (*url.URL, error) {
	u, err := url.Parse(strings.TrimSpace(endpoint))
	switch {
	case err != nil:
		return nil, errors.New("endpoint is not an address")
	case u.Scheme != "http" && u.Scheme != "https":
		return nil, errors.New("endpoint must begin with https:// or http://")
	case u.Hostname() == "":
		return nil, errors.New("endpoint has no host")
	case u.User != nil:
		return nil, errors.New("endpoint must not hold a user or password")
	case u.Fragment != "":
		return nil, errors.New("endpoint must not hold a fragment")
	}
	return u, nil
}

// openAIBase returns the address to which "chat/completions" or "responses" is added, with a slash at the end, and
// the query parameters that every request repeats. A bare host gets /v1, or /openai/v1 if it is one of Azure's; any
// path is taken as it is, whether or not it ends in /v1, and may be the whole address of the call.
func openAIBase(endpoint string) (string, url.Values, error) {
	return base(endpoint, func(host, path string) (string, error) {
		path = cutCall(path, "/chat/completions", "/responses")
		switch {
		case path != "":
			return path, nil
		case isAzure(host):
			return "/openai" + version, nil
		default:
			return version, nil
		}
	})
}

// anthropicBase returns the address to which "v1/messages" is added, with a slash at the end, and the query parameters
// that every request repeats. A /v1 at the end of the path is that of "v1/messages"; the address may be that of
// the whole call.
func anthropicBase(endpoint string) (string, url.Values, error) {
	return base(endpoint, func(_, path string) (string, error) {
		call := cutCall(path, "/messages")
		if call != path && !strings.HasSuffix(call, version) {
			return "", errors.New("endpoint ends in /messages without /v1 before it")
		}
		return strings.TrimSuffix(call, version), nil
	})
}

// difyBase returns the address to which "chat-messages" is added, with a slash at the end, and the query parameters that
// every request repeats. A bare host gets /v1; any path is taken as it is and may be the whole address of the call.
func difyBase(endpoint string) (string, url.Values, error) {
	return base(endpoint, func(_, path string) (string, error) {
		if path = cutCall(path, "/chat-messages"); path == "" {
			return version, nil
		}
		return path, nil
	})
}

// base reads an address, lets change make the base path of its path, which is clean and without a slash at the end,
// and takes the query parameters off.
func base(endpoint string, change func(host, path string) (string, error)) (string, url.Values, error) {
	u, err := parseEndpoint(endpoint)
	if err != nil {
		return "", nil, err
	}
	query := u.Query()
	u.RawQuery, u.ForceQuery = "", false
	u = u.JoinPath() // cleans the path
	path, err := change(u.Hostname(), strings.TrimRight(u.Path, "/"))
	if err != nil {
		return "", nil, err
	}
	u.Path, u.RawPath = path+"/", ""
	return u.String(), query, nil
}

// cutCall takes the path of a call off the end of a path.
func cutCall(path string, calls ...string) string {
	for _, call := range calls {
		if rest, found := strings.CutSuffix(path, call); found {
			return rest
		}
	}
	return path
}

// isAzure knows the hosts that Azure gives to its resources. Their interface is below /openai/v1.
func isAzure(host string) bool {
	host = strings.ToLower(host)
	for _, domain := range []string{".openai.azure.com", ".cognitiveservices.azure.com", ".services.ai.azure.com"} {
		if strings.HasSuffix(host, domain) {
			return true
		}
	}
	return false
}
