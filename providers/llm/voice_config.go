package llm

import (
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"
)

// VoiceNone is the type of no service at all.
const VoiceNone = "none"

// Defaults of voice services.
const (
	defaultHearingModel = "gpt-4o-mini-transcribe"
	defaultTalkingModel = "gpt-4o-mini-tts"
	defaultTalkingVoice = "alloy"
	defaultVoiceTotal   = 60 * time.Second
	defaultVoiceBytes   = 25 << 20 // what OpenAI takes
	defaultVoiceLength  = 5 * time.Minute
	defaultVoiceChars   = 16_000

	openAISpeechChars = 4096 // of one request
)

// voiceFormats are the formats that can be asked for, and whether two of a kind can be put one behind the other.
var voiceFormats = map[string]struct {
	mime  string
	joins bool
}{
	"mp3":  {"audio/mpeg", true},
	"aac":  {"audio/aac", true},
	"opus": {"audio/ogg", false},
	"flac": {"audio/flac", false},
	"wav":  {"audio/wav", false},
}

// VoiceService says which service it is and how to reach it.
type VoiceService struct {
	// Type is TypeOpenAI, TypeDify or VoiceNone. Empty: chosen, see NewVoice.
	Type string
	// Endpoint is the base address and APIKey the bearer token. Without both, those of the first provider of that type are
	// used; without the first alone, the service's own address; without the second alone, no token is sent.
	Endpoint string
	APIKey   string
	// Model is the service's name of the model. Empty: "gpt-4o-mini-transcribe" or "gpt-4o-mini-tts". Dify has none.
	Model   string
	Headers map[string]string

	Connect time.Duration // for TCP and for TLS. 0: 10 s
	Total   time.Duration // for one request, to its last byte. 0: 60 s
}

// TranscriberConfig says how recordings are written down.
type TranscriberConfig struct {
	VoiceService
	MaxBytes  int64         // of a recording. 0: 25 MiB
	MaxLength time.Duration // of a recording whose length is known. 0: 5 min
}

// SpeakerConfig says how answers are spoken.
type SpeakerConfig struct {
	VoiceService
	Enabled  bool   // without it there is no service
	Voice    string // where the utterance names none. Empty: "alloy" for TypeOpenAI, the app's own for TypeDify
	Format   string // of TypeOpenAI: mp3, aac, opus, flac or wav. Only the first two can be put together of pieces. Empty: mp3
	MaxChars int    // of a text. 0: 16 000
	MaxBytes int64  // of the audio of one piece. 0: 25 MiB
}

// resolve fills in the type and the address, from the providers where the settings leave them out.
func (s VoiceService) resolve(providers []Config) VoiceService {
	if s.Type == "" && s.Endpoint == "" && s.APIKey == "" {
		switch {
		case slices.ContainsFunc(providers, func(c Config) bool { return c.Type == TypeDify }):
			s.Type = TypeDify
		case slices.ContainsFunc(providers, Config.isOpenAI):
			s.Type = TypeOpenAI
			providers = slices.DeleteFunc(slices.Clone(providers), func(c Config) bool { return !c.isOpenAI() })
		default:
			s.Type = VoiceNone
		}
	}
	if i := slices.IndexFunc(providers, func(c Config) bool { return c.Type == s.Type }); i >= 0 && s.Endpoint == "" && s.APIKey == "" {
		p := providers[i]
		s.Endpoint, s.APIKey = p.endpoint(), p.APIKey
		if len(s.Headers) == 0 {
			s.Headers = p.Headers
		}
		if s.Connect == 0 {
			s.Connect = p.Connect
		}
	}
	if s.Endpoint == "" {
		s.Endpoint = defaultEndpoint(s.Type)
	}
	if s.Connect == 0 {
		s.Connect = defaultConnect
	}
	if s.Total == 0 {
		s.Total = defaultVoiceTotal
	}
	return s
}

// isOpenAI says whether an entry is OpenAI itself. Of what else speaks its language nobody knows whether it can hear.
func (c Config) isOpenAI() bool {
	if c.Type != TypeOpenAI {
		return false
	}
	u, err := parseEndpoint(c.endpoint())
	return err == nil && strings.EqualFold(u.Hostname(), "api.openai.com")
}

// check returns all that is wrong with a service.
func (s VoiceService) check(id string) error {
	var problems []error
	bad := func(format string, args ...any) {
		problems = append(problems, fmt.Errorf("%s: %s", id, fmt.Sprintf(format, args...)))
	}
	switch s.Type {
	case VoiceNone:
		return nil
	case TypeOpenAI, TypeDify:
	case "":
		bad("type is missing: openai or dify")
	default:
		bad("type %q cannot be used: openai, dify or none", s.Type)
	}
	if _, err := parseEndpoint(s.Endpoint); err != nil {
		bad("%v", err)
	} else if needsKey(s.Endpoint) && s.APIKey == "" && len(s.Headers) == 0 {
		bad("apiKey is missing")
	}
	if !headerValue(s.APIKey) {
		bad("apiKey holds characters that cannot be sent")
	}
	for k, v := range s.Headers {
		if word(k) == "" || !headerValue(v) {
			bad("header %q cannot be sent", word(k))
		}
	}
	if s.Connect < 0 || s.Total < 0 {
		bad("limits in time must not be negative")
	}
	return errors.Join(problems...)
}

func (c TranscriberConfig) withDefaults(providers []Config) TranscriberConfig {
	c.VoiceService = c.resolve(providers)
	if c.Model == "" {
		c.Model = defaultHearingModel
	}
	if c.MaxBytes == 0 {
		c.MaxBytes = defaultVoiceBytes
	}
	if c.MaxLength == 0 {
		c.MaxLength = defaultVoiceLength
	}
	return c
}

func (c TranscriberConfig) check() error {
	err := c.VoiceService.check(voiceIn)
	if c.MaxBytes < 0 || c.MaxLength < 0 {
		err = errors.Join(err, errors.New(voiceIn+": limits of recordings must not be negative"))
	}
	return err
}

func (c SpeakerConfig) withDefaults(providers []Config) SpeakerConfig {
	if !c.Enabled {
		c.Type = VoiceNone
	}
	c.VoiceService = c.resolve(providers)
	if c.Model == "" {
		c.Model = defaultTalkingModel
	}
	if c.Voice == "" && c.Type == TypeOpenAI {
		c.Voice = defaultTalkingVoice
	}
	if c.Format == "" {
		c.Format = "mp3"
	}
	if c.MaxChars == 0 {
		c.MaxChars = defaultVoiceChars
	}
	if c.MaxBytes == 0 {
		c.MaxBytes = defaultVoiceBytes
	}
	return c
}

func (c SpeakerConfig) check() error {
	err := c.VoiceService.check(voiceOut)
	if _, known := voiceFormats[c.Format]; !known {
		err = errors.Join(err, fmt.Errorf("%s: format %q is unknown: mp3, aac, opus, flac or wav", voiceOut, c.Format))
	}
	if c.MaxChars < 0 || c.MaxBytes < 0 {
		err = errors.Join(err, errors.New(voiceOut+": limits of texts and audio must not be negative"))
	}
	return err
}

// pieces cuts a text into what the service takes at once.
func (c SpeakerConfig) pieces(text string) ([]string, error) {
	limit := c.MaxChars
	if c.Type == TypeOpenAI {
		limit = openAISpeechChars
	}
	n := len([]rune(text))
	switch {
	case strings.TrimSpace(text) == "":
		return nil, &Error{Kind: KindInvalid, Provider: voiceOut, cause: errors.New("the text is empty")}
	case n > c.MaxChars:
		return nil, &Error{Kind: KindTooLarge, Provider: voiceOut, cause: errors.New("the text is too long")}
	case n > limit && !voiceFormats[c.Format].joins:
		return nil, &Error{Kind: KindTooLarge, Provider: voiceOut, cause: fmt.Errorf("the text is too long for the format %s", c.Format)}
	}
	return slices.DeleteFunc(cutSpeech(text, limit), func(s string) bool { return strings.TrimSpace(s) == "" }), nil
}

// base returns the base address of a service, with a slash at the end, and its query parameters. The address may be
// that of a whole call.
func (s VoiceService) base() (string, url.Values, error) {
	endpoint := s.Endpoint
	if u, err := parseEndpoint(endpoint); err == nil {
		u.Path = cutCall(strings.TrimRight(u.Path, "/"), "/audio/transcriptions", "/audio/speech", "/audio-to-text", "/text-to-audio")
		u.RawPath = ""
		endpoint = u.String()
	}
	if s.Type == TypeDify {
		return difyBase(endpoint)
	}
	return openAIBase(endpoint)
}
