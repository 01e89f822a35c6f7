package config

import (
	"errors"
	"net/url"
	"slices"
	"time"
)

// voice checks what hears and speaks.
func (l *loader) voice(c *Chatbox) {
	l.voiceService("chatbox.transcriber", c.Transcriber.Type, c.Transcriber.Endpoint, c.Transcriber.APIKey, true, c.LLM.Providers)
	l.voiceService("chatbox.speech", c.Speech.Type, c.Speech.Endpoint, c.Speech.APIKey, c.Speech.Enabled, c.LLM.Providers)
	l.check(slices.Contains([]string{"mp3", "aac", "opus", "flac", "wav"}, c.Speech.Format), "chatbox.speech.format",
		"must be mp3, aac, opus, flac or wav, is %q", clip(c.Speech.Format))
	l.check(c.Transcriber.MaxSeconds >= 1 && c.Transcriber.MaxSeconds <= 4*3600, "chatbox.transcriber.max_seconds",
		"must be 1 to 14400, is %d", c.Transcriber.MaxSeconds)
	l.check(c.Transcriber.MaxBytes >= 1<<10 && c.Transcriber.MaxBytes <= 1<<30, "chatbox.transcriber.max_bytes",
		"must be 1KiB to 1GiB, is %s", c.Transcriber.MaxBytes)
	l.check(c.Speech.MaxChars >= 1 && c.Speech.MaxChars <= 1<<20, "chatbox.speech.max_chars", "must be 1 to 1048576, is %d", c.Speech.MaxChars)
	l.atLeast(map[string]time.Duration{
		"chatbox.transcriber.connect_timeout": c.Transcriber.ConnectTimeout, "chatbox.transcriber.total_timeout": c.Transcriber.TotalTimeout,
		"chatbox.speech.connect_timeout": c.Speech.ConnectTimeout, "chatbox.speech.total_timeout": c.Speech.TotalTimeout,
		"chatbox.ai_files.fetch_timeout": c.AIFiles.FetchTimeout,
	})
}

func (l *loader) voiceService(table, typ, endpoint string, key Secret, used bool, providers []Provider) {
	l.check(slices.Contains([]string{"auto", "openai", "dify", "none"}, typ), table+".type", "must be openai, dify, none or auto, is %q", clip(typ))
	if typ == "auto" && (endpoint != "" || key.Set()) {
		l.fail(table+".type", errors.New("must be openai or dify where an endpoint or a key is set"))
	}
	named := slices.ContainsFunc(providers, func(p Provider) bool { return p.Type == typ })
	if used && (typ == "openai" || typ == "dify") && endpoint == "" && !key.Set() && !named && !l.failed(table+".apiKey") {
		l.fail(table+".apiKey", errors.New("is required where chatbox.llm has no provider of that type"))
	}
	if endpoint != "" {
		u, err := url.Parse(endpoint)
		l.check(err == nil && (u.Scheme == "http" || u.Scheme == "https") && u.Host != "" && u.User == nil, table+".endpoint",
			"must be an address such as https://host/v1, without a login")
	}
}

// aiFiles checks what becomes of files that models have made.
func (l *loader) aiFiles(f *AIFiles) {
	l.check(slices.Contains([]string{"link", "fetch", "drop"}, f.External), "chatbox.ai_files.external",
		"must be link, fetch or drop, is %q", clip(f.External))
	l.check(f.FetchPort >= 1 && f.FetchPort <= 65535, "chatbox.ai_files.fetch_port", "must be 1 to 65535, is %d", f.FetchPort)
	sizes := map[string]Size{"chatbox.ai_files.max_bytes": f.MaxBytes, "chatbox.ai_files.fetch_bytes": f.FetchBytes}
	for _, key := range sortedKeys(sizes) {
		l.check(sizes[key] >= 1<<10 && sizes[key] <= 1<<30, key, "must be 1KiB to 1GiB, is %s", sizes[key])
	}
}

func (l *loader) atLeast(durations map[string]time.Duration) {
	for _, key := range sortedKeys(durations) {
		l.check(durations[key] >= time.Millisecond, key, "must be at least 1ms, is %s", durations[key])
	}
}
