package config

import "time"

// Transcriber is how voice messages are written down. So far the service only makes it ready and checks it: voice messages themselves are not part of this version yet.
type Transcriber struct {
	// Service: openai (and what speaks its language), dify, none, or auto: the first provider of chatbox.llm that is a Dify app, else OpenAI if it is among them, else none.
	Type string `toml:"type" default:"auto"`
	// Base URL, as https://host/v1. Empty: with apiKey empty too that of the first provider of the same type, else the service's own.
	Endpoint string `toml:"endpoint"`
	// Key for the service. Empty: with endpoint empty too that of the first provider of the same type, else none is sent.
	APIKey Secret `toml:"apiKey"`
	// Model name sent to the service. dify has none.
	Model string `toml:"model" default:"gpt-4o-mini-transcribe"`
	// Longest recording, as far as its length is known, in seconds.
	MaxSeconds int `toml:"max_seconds" default:"300"`
	// Largest recording. OpenAI takes 25 MiB, Dify 30.
	MaxBytes Size `toml:"max_bytes" default:"25MiB"`
	// Time to connect.
	ConnectTimeout time.Duration `toml:"connect_timeout" default:"10s"`
	// Longest time for one try; there are up to chatbox.llm.attempts.
	TotalTimeout time.Duration `toml:"total_timeout" default:"60s"`
	// Further headers of every request, for gateways.
	Headers map[string]Secret `toml:"headers"`
}

// Speech is how answers are spoken. As with voice messages, it is made ready and checked, but nothing speaks in this version yet.
type Speech struct {
	// Whether answers can be spoken at all.
	Enabled bool `toml:"enabled" default:"false"`
	// Service, as chatbox.transcriber.type.
	Type string `toml:"type" default:"auto"`
	// Base URL, as chatbox.transcriber.endpoint.
	Endpoint string `toml:"endpoint"`
	// Key for the service, as chatbox.transcriber.apiKey.
	APIKey Secret `toml:"apiKey"`
	// Model name sent to the service. dify has none.
	Model string `toml:"model" default:"gpt-4o-mini-tts"`
	// The service's name of the voice. Empty: alloy with openai, the app's own with dify.
	Voice string `toml:"voice"`
	// Format of the audio with openai: mp3, aac, opus, flac or wav. Only mp3 and aac can be put together, so with the others a text ends at 4096 characters.
	Format string `toml:"format" default:"mp3"`
	// Longest text that is spoken, in characters; it is what costs.
	MaxChars int `toml:"max_chars" default:"16000"`
	// Time to connect.
	ConnectTimeout time.Duration `toml:"connect_timeout" default:"10s"`
	// Longest time for one try, to the last byte of the audio.
	TotalTimeout time.Duration `toml:"total_timeout" default:"60s"`
	// Further headers of every request, for gateways.
	Headers map[string]Secret `toml:"headers"`
}

// AIFiles is what becomes of files that a model has made: those that its provider hands over, and those that it only names an address of. This version has no store yet, so that of both the address is all that can be passed on.
type AIFiles struct {
	// link: the address is passed on if it is https and public. fetch: the file is fetched through a client that reaches nothing but the open internet, and kept, where there is a store; what cannot be fetched is passed on as a link unless that client refused the address. drop: it is left out.
	External string `toml:"external" default:"link"`
	// Largest file that a provider hands over.
	MaxBytes Size `toml:"max_bytes" default:"50MiB"`
	// Largest file that is fetched.
	FetchBytes Size `toml:"fetch_bytes" default:"25MiB"`
	// Longest time for fetching one file.
	FetchTimeout time.Duration `toml:"fetch_timeout" default:"10s"`
	// Port that files are fetched from.
	FetchPort int `toml:"fetch_port" default:"443"`
}
