package llm

import (
	"net/url"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// bases is the rule by type: how a base address is read, and what a call adds to it.
var bases = map[string]struct {
	read func(string) (string, url.Values, error)
	call string
}{
	TypeOpenAI:    {openAIBase, "chat/completions"},
	APIResponses:  {openAIBase, "responses"},
	TypeAnthropic: {anthropicBase, "v1/messages"},
	TypeDify:      {difyBase, "chat-messages"},
}

// What people write as the address of a provider, and the address that is called.
func TestEndpoint_isReadAsPeopleWriteIt(t *testing.T) {
	type written map[string]string
	for typ, table := range map[string]written{
		TypeOpenAI: {
			"":                                                     "https://api.openai.com/v1/chat/completions",
			"https://api.openai.com/v1":                            "https://api.openai.com/v1/chat/completions",
			"https://api.openai.com/v1/":                           "https://api.openai.com/v1/chat/completions",
			"https://api.openai.com/v1//":                          "https://api.openai.com/v1/chat/completions",
			"https://api.openai.com":                               "https://api.openai.com/v1/chat/completions",
			"https://api.openai.com/":                              "https://api.openai.com/v1/chat/completions",
			"  https://api.openai.com/v1  ":                        "https://api.openai.com/v1/chat/completions",
			"https://api.openai.com/v1/chat/completions":           "https://api.openai.com/v1/chat/completions",
			"https://api.openai.com/v1/chat/completions/":          "https://api.openai.com/v1/chat/completions",
			"https://api.openai.com/v1/responses":                  "https://api.openai.com/v1/chat/completions",
			"http://127.0.0.1:11434":                               "http://127.0.0.1:11434/v1/chat/completions",
			"http://[::1]:8000/v1":                                 "http://[::1]:8000/v1/chat/completions",
			"https://proxy.example/llm":                            "https://proxy.example/llm/chat/completions",
			"https://proxy.example/llm/v1/":                        "https://proxy.example/llm/v1/chat/completions",
			"https://openrouter.example/api/v1":                    "https://openrouter.example/api/v1/chat/completions",
			"https://x.openai.azure.com":                           "https://x.openai.azure.com/openai/v1/chat/completions",
			"https://X.OpenAI.Azure.com/":                          "https://X.OpenAI.Azure.com/openai/v1/chat/completions",
			"https://x.openai.azure.com/openai/v1/":                "https://x.openai.azure.com/openai/v1/chat/completions",
			"https://x.example/openai/deployments/d?api-version=1": "https://x.example/openai/deployments/d/chat/completions?api-version=1",
			"https://x.example/openai/deployments/d/chat/completions?api-version=1": "https://x.example/openai/deployments/d/chat/completions?api-version=1",
		},
		APIResponses: {
			"https://api.openai.com/v1/responses":   "https://api.openai.com/v1/responses",
			"https://api.openai.com":                "https://api.openai.com/v1/responses",
			"https://x.services.ai.azure.com":       "https://x.services.ai.azure.com/openai/v1/responses",
			"https://proxy.example/llm/responses/?": "https://proxy.example/llm/responses",
		},
		TypeAnthropic: {
			"":                                                      "https://api.anthropic.com/v1/messages",
			"https://api.anthropic.com":                             "https://api.anthropic.com/v1/messages",
			"https://api.anthropic.com/":                            "https://api.anthropic.com/v1/messages",
			"https://api.anthropic.com/v1":                          "https://api.anthropic.com/v1/messages", // as in the example settings
			"https://api.anthropic.com/v1/":                         "https://api.anthropic.com/v1/messages",
			"https://api.anthropic.com//v1//":                       "https://api.anthropic.com/v1/messages",
			"https://api.anthropic.com/v1/messages":                 "https://api.anthropic.com/v1/messages",
			"https://proxy.example/anthropic":                       "https://proxy.example/anthropic/v1/messages",
			"https://proxy.example/anthropic/v1/?a=b":               "https://proxy.example/anthropic/v1/messages?a=b",
			"https://x.services.ai.azure.com/anthropic/v1/messages": "https://x.services.ai.azure.com/anthropic/v1/messages",
			"http://127.0.0.1:4000":                                 "http://127.0.0.1:4000/v1/messages",
		},
		TypeDify: {
			"":                                       "https://api.dify.ai/v1/chat-messages",
			"https://api.dify.ai":                    "https://api.dify.ai/v1/chat-messages",
			"https://api.dify.ai/v1":                 "https://api.dify.ai/v1/chat-messages",
			"https://api.dify.ai/v1/":                "https://api.dify.ai/v1/chat-messages",
			"https://api.dify.ai/v1/chat-messages":   "https://api.dify.ai/v1/chat-messages",
			"https://dify.internal.example/v1":       "https://dify.internal.example/v1/chat-messages",
			"http://dify.internal.example:8080":      "http://dify.internal.example:8080/v1/chat-messages",
			"https://intranet.example/dify/api/v1/":  "https://intranet.example/dify/api/v1/chat-messages",
			"https://intranet.example/dify?tenant=7": "https://intranet.example/dify/chat-messages?tenant=7",
		},
	} {
		for endpoint, want := range table {
			t.Run(typ+" "+endpoint, func(t *testing.T) {
				if endpoint == "" {
					endpoint = defaultEndpoint(typ)
				}
				require.Equal(t, want, called(t, typ, endpoint))
			})
		}
	}
	_, _, err := anthropicBase("https://proxy.example/hidden/messages")
	require.ErrorContains(t, err, "without /v1")
	require.NotContains(t, err.Error(), "hidden")
}

// called is the address of a call, given the base address of the settings.
func called(t require.TestingT, typ, endpoint string) string {
	got, query, err := bases[typ].read(endpoint)
	require.NoError(t, err)
	require.True(t, strings.HasSuffix(got, "/"), got)
	got += bases[typ].call
	if len(query) > 0 {
		got += "?" + query.Encode()
	}
	return got
}

// Whatever the address, the address of its call means the same again, and slashes at the end mean nothing.
func TestEndpoint_theWholeAddressOfACall_meansTheSame(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		typ := rapid.SampledFrom([]string{TypeOpenAI, APIResponses, TypeAnthropic, TypeDify}).Draw(t, "type")
		host := rapid.SampledFrom([]string{"https://llm.example", "http://127.0.0.1:8000", "https://x.openai.azure.com"}).Draw(t, "host")
		path := strings.Join(rapid.SliceOfN(rapid.SampledFrom([]string{"/v1", "/openai", "/a-b", "/d%20e"}), 0, 3).Draw(t, "path"), "")
		query := rapid.SampledFrom([]string{"", "?api-version=2024-10-21", "?a=b%20c"}).Draw(t, "query")
		want := called(t, typ, host+path+query)
		require.Equal(t, want, called(t, typ, want))
		require.Equal(t, want, called(t, typ, host+path+"//"+query))
	})
}

func TestEndpoint_queryParametersAreKept(t *testing.T) {
	_, query, err := openAIBase("https://x.example/openai/deployments/d?api-version=2024-10-21&a=b%20c")
	require.NoError(t, err)
	require.Equal(t, "a=b+c&api-version=2024-10-21", query.Encode())
}
