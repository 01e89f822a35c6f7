package main

import (
	"log/slog"
	"slices"
	"time"

	"github.com/real-rm/chatbox/providers/llm"
	"github.com/real-rm/chatbox/server/config"
	"github.com/real-rm/chatbox/server/protocol"
)

// modelsOf is what the settings say about models.
func modelsOf(s *config.Settings, log *slog.Logger) llm.SetOptions {
	m := &s.Chatbox.LLM
	return llm.SetOptions{
		Providers: providersOf(s), Attempts: m.Attempts, BackoffBase: m.BackoffBase, BackoffCap: m.BackoffCap,
		RetryShare: orNone(m.RetryBudget), RetryFloor: orNone(m.RetryFloor),
		BreakerFailures: m.BreakerFailures, BreakerWindow: m.BreakerWindow, BreakerOpen: m.BreakerOpen, FallbackOnRefusal: m.FallbackOnRefusal,
		Alert: func(a llm.Alert) {
			log.Error("llm model has stopped answering", "model", a.Model, "kind", string(a.Kind), "since", a.Since.UTC().Format(time.RFC3339), "error", a.Err)
		},
		Log: log,
	}
}

func providersOf(s *config.Settings) []llm.Config {
	m := &s.Chatbox.LLM
	var out []llm.Config
	providers := slices.Clone(m.Providers)
	slices.SortStableFunc(providers, func(a, b config.Provider) int { // the set's first is the default
		return rank(a.ID == m.DefaultModel) - rank(b.ID == m.DefaultModel)
	})
	for _, c := range providers {
		out = append(out, llm.Config{
			ID: c.ID, Name: c.Name, Type: c.Type, Endpoint: c.Endpoint, APIKey: c.APIKey.Reveal(), Model: c.Model,
			FirstToken: c.FirstTokenTimeout, Idle: c.IdleTimeout, Total: c.TotalTimeout, Connect: c.ConnectTimeout,
			IncludeUsage: c.IncludeUsage, MaxTokensField: c.MaxTokensField, SystemRole: c.SystemRole, Continue: c.Continue, Headers: reveal(c.Headers),
			API: c.API, Tools: c.Tools, Hosts: c.Hosts, Inputs: reveal(c.Inputs), Fallback: c.Fallback, Vision: c.Vision, Audio: c.Audio, Files: c.Files,
			ContextTokens: c.ContextTokens, MaxOutput: c.MaxOutput,
		})
	}
	return out
}

// systemPrompts are the texts that open the conversations of models, by their ids.
func systemPrompts(s *config.Settings) map[string]string {
	out := make(map[string]string, len(s.Chatbox.LLM.Providers))
	for _, p := range s.Chatbox.LLM.Providers {
		out[p.ID] = p.SystemPrompt
	}
	return out
}

// offered is the models as clients learn of them.
func offered(models []llm.Model) []protocol.Model {
	var out []protocol.Model
	for _, m := range models {
		out = append(out, protocol.Model{ID: m.ID, Name: m.Name, Vision: m.Vision, Audio: m.Audio, Files: m.Files})
	}
	return out
}

func reveal(secrets map[string]config.Secret) map[string]string {
	out := make(map[string]string, len(secrets))
	for k, v := range secrets {
		out[k] = v.Reveal()
	}
	return out
}

// rank sorts what is preferred before what is not.
func rank(preferred bool) int {
	if preferred {
		return 0
	}
	return 1
}

// orNone turns the settings' 0, which means none, into package llm's negative.
func orNone[T int | float64](v T) T {
	if v == 0 {
		return -1
	}
	return v
}
