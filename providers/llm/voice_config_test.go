package llm

import (
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// The order of choice: the settings, else the first app of Dify, else OpenAI, else none.
func TestNewVoice_choosesTheService(t *testing.T) {
	dify := Config{ID: "d", Type: TypeDify, Endpoint: "https://dify.example.com/v1", APIKey: "app-1"}
	dify2 := Config{ID: "d2", Type: TypeDify, APIKey: "app-2"}
	openai := Config{ID: "o", Type: TypeOpenAI, APIKey: "sk-1", Headers: map[string]string{"X": "y"}}
	local := Config{ID: "l", Type: TypeOpenAI, Endpoint: "http://127.0.0.1:11434/v1", APIKey: "sk-2"}
	anthropic := Config{ID: "a", Type: TypeAnthropic, APIKey: "ak-1"}
	for name, c := range map[string]struct {
		set       VoiceService
		providers []Config
		want      string // type, address and key
	}{
		"nothing":                           {VoiceService{}, nil, "none"},
		"none although there is one":        {VoiceService{Type: VoiceNone}, []Config{dify, openai}, "none"},
		"dify before openai":                {VoiceService{}, []Config{anthropic, openai, dify, dify2}, "dify https://dify.example.com/v1/ app-1"},
		"openai":                            {VoiceService{}, []Config{anthropic, local, openai}, "openai https://api.openai.com/v1/ sk-1"},
		"only others":                       {VoiceService{}, []Config{anthropic, local}, "none"},
		"type, the rest from the first":     {VoiceService{Type: TypeOpenAI}, []Config{dify, local, openai}, "openai http://127.0.0.1:11434/v1/ sk-2"},
		"type dify":                         {VoiceService{Type: TypeDify}, []Config{openai, dify2}, "dify https://api.dify.ai/v1/ app-2"},
		"own key at the service's address":  {VoiceService{Type: TypeOpenAI, APIKey: "own"}, []Config{local}, "openai https://api.openai.com/v1/ own"},
		"own address gets no foreign key":   {VoiceService{Type: TypeOpenAI, Endpoint: "http://127.0.0.1:9/v1"}, []Config{openai}, "openai http://127.0.0.1:9/v1/ "},
		"own dify":                          {VoiceService{Type: TypeDify, Endpoint: "https://d.example.com", APIKey: "own"}, []Config{openai}, "dify https://d.example.com/v1/ own"},
		"the address of the call":           {VoiceService{Type: TypeOpenAI, Endpoint: "https://h.example.com/x/audio/transcriptions?k=v", APIKey: "own"}, nil, "openai https://h.example.com/x/ own"},
		"the address of dify's call":        {VoiceService{Type: TypeDify, Endpoint: "https://h.example.com/v1/text-to-audio/", APIKey: "own"}, nil, "dify https://h.example.com/v1/ own"},
		"an address of azure, with a query": {VoiceService{Type: TypeOpenAI, Endpoint: "https://r.openai.azure.com?api-version=1", APIKey: "own"}, nil, "openai https://r.openai.azure.com/openai/v1/ own"},
	} {
		t.Run(name, func(t *testing.T) {
			v := newVoice(t, VoiceOptions{
				Transcriber: TranscriberConfig{VoiceService: c.set}, Speaker: SpeakerConfig{VoiceService: c.set, Enabled: true}, Providers: c.providers,
			})
			for _, s := range []VoiceService{v.in.VoiceService, v.out.VoiceService} {
				got := s.Type
				if got != VoiceNone {
					base, _, err := s.base()
					require.NoError(t, err)
					got += " " + base + " " + s.APIKey
				}
				assert.Equal(t, c.want, got)
			}
			assert.Equal(t, c.want != "none", v.CanTranscribe())
			assert.Equal(t, c.want != "none", v.CanSpeak())
		})
	}
	v := newVoice(t, VoiceOptions{Providers: []Config{openai}})
	assert.Equal(t, openai.Headers, v.in.Headers)
	assert.False(t, v.CanSpeak(), "speech is off until it is enabled")
}

func TestNewVoice_sendsQueryAndHeaders(t *testing.T) {
	e := &ear{turns: []http.HandlerFunc{says(200, heard)}}
	var gateway string
	address := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		gateway = r.Header.Get("X-Gateway")
		e.ServeHTTP(w, r)
	}))
	v := newVoice(t, VoiceOptions{Transcriber: TranscriberConfig{VoiceService: VoiceService{
		Type: TypeOpenAI, Endpoint: address + "/x?api-version=2", Headers: map[string]string{"X-Gateway": "g"},
	}}})
	_, err := v.Transcribe(t.Context(), (&tape{text: "x"}).recording("audio/wav"))
	require.NoError(t, err)
	got := e.all()[0]
	assert.Equal(t, []string{"/x/audio/transcriptions", "api-version=2", "", "g"}, []string{got.path, got.query, got.auth, gateway})
}

func TestNewVoice_withWrongSettings_saysAll(t *testing.T) {
	_, err := NewVoice(VoiceOptions{
		Transcriber: TranscriberConfig{VoiceService: VoiceService{Type: TypeAnthropic, Endpoint: "ftp://x", APIKey: "a\nb", Connect: -1, Headers: map[string]string{"a b": "c"}}, MaxBytes: -1},
		Speaker:     SpeakerConfig{Enabled: true, VoiceService: VoiceService{Type: TypeOpenAI}, Format: "midi", MaxChars: -1},
	})
	require.Error(t, err)
	for _, want := range []string{
		`transcriber: type "anthropic" cannot be used`, "transcriber: endpoint must begin", "transcriber: apiKey holds", "transcriber: header", "transcriber: limits in time",
		"transcriber: limits of recordings", "speech: apiKey is missing", `speech: format "midi"`, "speech: limits of texts",
	} {
		assert.Contains(t, err.Error(), want)
	}
	assert.NotContains(t, err.Error(), "a\nb")
	_, err = NewVoice(VoiceOptions{Transcriber: TranscriberConfig{VoiceService: VoiceService{Endpoint: "https://x"}}})
	require.ErrorContains(t, err, "type is missing")
	assert.NotContains(t, strings.ToLower(err.Error()), "speech")
}
