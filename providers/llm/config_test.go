package llm

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestNewSet_namesEveryProblemAtOnce(t *testing.T) {
	_, err := NewSet(SetOptions{Providers: []Config{
		{ID: "good", Type: TypeOpenAI, Endpoint: "http://llm.test"},
		{Type: TypeOpenAI, Endpoint: "http://llm.test"},
		{ID: "good", Type: TypeOpenAI, Endpoint: "http://llm.test"},
		{ID: "b", Type: "gemini"},
		{ID: "c"},
		{ID: "d", Type: TypeOpenAI, Endpoint: "llm.test/v1?key=hidden-1"},
		{ID: "e", Type: TypeOpenAI, Endpoint: "http://user:hidden-2@llm.test"},
		{ID: "f", Type: TypeOpenAI, Endpoint: "http://\x7f"},
		{ID: "g", Type: TypeOpenAI, Headers: map[string]string{}},
		{ID: "h", Type: TypeOpenAI, Endpoint: "http://llm.test", APIKey: "hidden-3\n", Headers: map[string]string{"X-A": "hidden-4\r", "a b": "c"}},
		{ID: "i", Type: TypeAnthropic, Endpoint: "ftp://llm.test"},
		{ID: "j", Type: TypeOpenAI, Endpoint: "http://llm.test", Idle: -1, MaxTokensField: "tokens", SystemRole: "root", MaxOutput: -1},
		{ID: "k", Type: TypeOpenAI, Endpoint: "http:///v1"},
		{ID: "l", Type: TypeOpenAI, Endpoint: "http://llm.test/#x"},
	}})
	require.Error(t, err)
	for _, want := range []string{
		"llm provider 2: id is missing", "llm provider 3 (good): id is used twice", `4 (b): type "gemini" is unknown`, "5 (c): type is missing",
		"6 (d): endpoint must begin with https://", "7 (e): endpoint must not hold a user", "8 (f): endpoint is not an address",
		"9 (g): apiKey is missing", "10 (h): apiKey holds characters", `10 (h): header "X-A" cannot be sent`, `10 (h): header "" cannot be sent`,
		"11 (i): endpoint must begin", "12 (j): idle limit is negative", "max_tokens_field", "system_role", "max_output",
		"13 (k): endpoint has no host", "14 (l): endpoint must not hold a fragment",
	} {
		require.ErrorContains(t, err, want)
	}
	require.NotContains(t, err.Error(), "hidden")
	require.Equal(t, 18, strings.Count(err.Error(), "llm provider "), err.Error())
}

func TestConfig_zeroMeansTheDocumentedDefaults(t *testing.T) {
	c := Config{ID: "gpt-4", Type: TypeOpenAI}.withDefaults()
	require.Equal(t, Config{ID: "gpt-4", Type: TypeOpenAI, Endpoint: "https://api.openai.com/v1", Model: "gpt-4", FirstToken: 300 * time.Second,
		Idle: 120 * time.Second, Total: 15 * time.Minute, Connect: 10 * time.Second, MaxTokensField: "max_completion_tokens", SystemRole: "system"}, c)
}
