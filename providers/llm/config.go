package llm

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// Types of providers.
const (
	TypeOpenAI    = "openai" // OpenAI's Chat Completions, and all that speak it
	TypeAnthropic = "anthropic"
	TypeDify      = "dify"
)

// Defaults of Config.
const (
	defaultConnect      = 10 * time.Second
	defaultFirstToken   = 300 * time.Second // reasoning models are silent for minutes
	defaultIdle         = 120 * time.Second
	defaultTotal        = 15 * time.Minute
	maxCompletionTokens = "max_completion_tokens"
	maxTokens           = "max_tokens"
	systemRole          = "system"
	developerRole       = "developer"
)

// Interfaces of OpenAI.
const (
	APIChat      = "chat"      // Chat Completions
	APIResponses = "responses" // Responses, which reads more kinds of files and returns generated ones
)

// Tools that run at OpenAI.
const (
	ToolImageGeneration = "image_generation"
	ToolCodeInterpreter = "code_interpreter" // its containers are billed apart
	ToolWebSearch       = "web_search"
)

// Ways in which a server goes on after the beginning of an answer.
const (
	ContinuePrefix       = "prefix"        // the last message is marked with prefix (DeepSeek, Mistral)
	ContinueFinalMessage = "final_message" // the request says continue_final_message (vLLM)
)

// Config is one provider entry of the settings: a model and how to reach it.
type Config struct {
	ID       string // of the model, as sessions and users know it; required and unique
	Name     string // shown to users. Empty: ID
	Type     string // TypeOpenAI, TypeAnthropic or TypeDify; required
	Endpoint string // base address. Empty: the provider's own. A bare host gets /v1; query parameters are kept
	APIKey   string // bearer token. Empty: none is sent, for local servers
	Model    string // the provider's name of the model. Empty: ID

	// Limits in time. They hold for each request, not for all attempts together.
	FirstToken time.Duration // until the model has said anything. 0: 300 s
	Idle       time.Duration // silence after that; any byte ends it. 0: 120 s
	Total      time.Duration // for a whole answer. 0: 15 min
	Connect    time.Duration // for TCP and for TLS. 0: 10 s

	IncludeUsage   *bool  // ask for the usage of streams. nil: yes; old servers refuse the field
	MaxTokensField string // "max_completion_tokens" or "max_tokens". Empty: the first
	SystemRole     string // "system" or "developer". Empty: the first
	Continue       string // how to go on after the beginning of an answer: ContinuePrefix, ContinueFinalMessage. Empty: not at all
	Headers        map[string]string

	API      string            // of TypeOpenAI: APIChat or APIResponses. Empty: the first, which all compatible servers speak
	Tools    []string          // of APIResponses: ToolImageGeneration, ToolCodeInterpreter, ToolWebSearch. Empty: none, so no files
	Hosts    []string          // of TypeDify: hosts besides Endpoint's that files of answers may be fetched from
	Inputs   map[string]string // of TypeDify: the app's variables
	Fallback []string          // ids of models that are asked in this order when this one cannot answer
	Vision   bool              // it can look at images
	Audio    bool              // it can listen to recordings
	Files    []string          // what else it can read: extensions without the dot

	ContextTokens int // what the model can read, in tokens. 0: unknown
	MaxOutput     int // what it may write, in tokens. 0: the provider's own limit
}

// check returns all that is wrong with entry i.
func (c Config) check(i int) error {
	var problems []error
	bad := func(format string, args ...any) {
		problems = append(problems, c.problem(i, fmt.Sprintf(format, args...)))
	}
	if strings.TrimSpace(c.ID) == "" {
		bad("id is missing")
	}
	switch {
	case knownType(c.Type):
	case c.Type == "":
		bad("type is missing: openai, anthropic or dify")
	default:
		bad("type %q is unknown: openai, anthropic or dify", c.Type)
	}
	if c.Endpoint != "" {
		if _, err := parseEndpoint(c.Endpoint); err != nil {
			bad("%v", err)
		}
	}
	if knownType(c.Type) && c.APIKey == "" && len(c.Headers) == 0 && needsKey(c.endpoint()) {
		bad("apiKey is missing")
	}
	if !headerValue(c.APIKey) {
		bad("apiKey holds characters that cannot be sent")
	}
	for k, v := range c.Headers {
		if word(k) == "" || !headerValue(v) {
			bad("header %q cannot be sent", word(k))
		}
	}
	for name, d := range map[string]time.Duration{"first token": c.FirstToken, "idle": c.Idle, "total": c.Total, "connect": c.Connect} {
		if d < 0 {
			bad("%s limit is negative", name)
		}
	}
	if f := c.MaxTokensField; f != "" && f != maxCompletionTokens && f != maxTokens {
		bad("max_tokens_field %q is unknown: %s or %s", f, maxCompletionTokens, maxTokens)
	}
	if r := c.SystemRole; r != "" && r != systemRole && r != developerRole {
		bad("system_role %q is unknown: %s or %s", r, systemRole, developerRole)
	}
	switch v := c.Continue; {
	case v != "" && v != ContinuePrefix && v != ContinueFinalMessage:
		bad("continue %q is unknown: %s or %s", v, ContinuePrefix, ContinueFinalMessage)
	case v != "" && (c.API == APIResponses || c.Type == TypeDify), v == ContinueFinalMessage && c.Type == TypeAnthropic:
		bad("continue %q is not for this api", v) // what it ignores would be said twice
	}
	switch {
	case c.API != "" && c.API != APIChat && c.API != APIResponses:
		bad("api %q is unknown: %s or %s", c.API, APIChat, APIResponses)
	case c.API != "" && c.Type != TypeOpenAI && knownType(c.Type):
		bad("api is for type %s only", TypeOpenAI)
	}
	if len(c.Tools) > 0 && c.API != APIResponses {
		bad("tools are for api %s only", APIResponses)
	}
	if (len(c.Hosts) > 0 || len(c.Inputs) > 0) && c.Type != TypeDify && knownType(c.Type) {
		bad("hosts and inputs are for type %s only", TypeDify)
	}
	for _, ext := range c.Files {
		if word(ext) == "" || strings.HasPrefix(ext, ".") || ext != strings.ToLower(ext) {
			bad("files: %q is not an extension such as pdf", word(ext))
		}
	}
	if c.ContextTokens < 0 || c.MaxOutput < 0 {
		bad("context_tokens and max_output must not be negative")
	}
	return errors.Join(problems...)
}

func (c Config) problem(i int, what string) error {
	if c.ID == "" {
		return fmt.Errorf("llm provider %d: %s", i+1, what)
	}
	return fmt.Errorf("llm provider %d (%s): %s", i+1, c.ID, what)
}

func (c Config) endpoint() string {
	if c.Endpoint == "" {
		return defaultEndpoint(c.Type)
	}
	return c.Endpoint
}

// withDefaults fills what was left out.
func (c Config) withDefaults() Config {
	c.Endpoint = c.endpoint()
	if c.Model == "" {
		c.Model = c.ID
	}
	for _, d := range []struct {
		v   *time.Duration
		def time.Duration
	}{{&c.FirstToken, defaultFirstToken}, {&c.Idle, defaultIdle}, {&c.Total, defaultTotal}, {&c.Connect, defaultConnect}} {
		if *d.v == 0 {
			*d.v = d.def
		}
	}
	if c.MaxTokensField == "" {
		c.MaxTokensField = maxCompletionTokens
	}
	if c.SystemRole == "" {
		c.SystemRole = systemRole
	}
	return c
}

// reveals says whether a text holds the key, or the value of a header, of an app's variable or of a query parameter.
func (c Config) reveals(text string) bool {
	secrets := []string{c.APIKey}
	for _, values := range []map[string]string{c.Headers, c.Inputs} {
		secrets = slices.AppendSeq(secrets, maps.Values(values))
	}
	if u, err := parseEndpoint(c.Endpoint); err == nil {
		for _, values := range u.Query() {
			secrets = append(secrets, values...)
		}
	}
	for _, s := range secrets {
		if len(s) >= 8 && strings.Contains(text, s) {
			return true
		}
	}
	return false
}

// headerValue says whether s can be the value of an HTTP header.
func headerValue(s string) bool {
	for i := range len(s) {
		if c := s[i]; c < 0x20 && c != '\t' || c == 0x7f {
			return false
		}
	}
	return true
}
