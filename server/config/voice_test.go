package config_test

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/real-rm/chatbox/server/config"
)

func TestLoad_voiceAndFilesHaveDefaults(t *testing.T) {
	s, _, err := load(t, config.LoadOptions{}, minimal(t))
	require.NoError(t, err)
	c := s.Chatbox
	assert.Equal(t, []any{"auto", 300, config.Size(25 << 20), false, "mp3", "link", config.Size(50 << 20), 443},
		[]any{c.Transcriber.Type, c.Transcriber.MaxSeconds, c.Transcriber.MaxBytes, c.Speech.Enabled, c.Speech.Format, c.AIFiles.External, c.AIFiles.MaxBytes, c.AIFiles.FetchPort})
}

func TestLoad_voiceAndFilesTellAllProblems(t *testing.T) {
	_, _, err := load(t, config.LoadOptions{Env: []string{"CHATBOX__CHATBOX__SPEECH__APIKEY=speech-s3cr3t"}}, minimal(t), `
[chatbox.transcriber]
type = "whisper"
endpoint = "ftp://user:s3cr3t@host"
max_seconds = 0
max_bytes = "1"
total_timeout = "0s"
apikey = "x"
[chatbox.speech]
enabled = true
type = "auto"
format = "midi"
max_chars = -1
[chatbox.ai_files]
external = "keep"
fetch_port = 70000
fetch_bytes = "2GB"
`)
	require.Error(t, err)
	for _, want := range []string{
		"chatbox.transcriber.type", "chatbox.transcriber.endpoint", "chatbox.transcriber.max_seconds", "chatbox.transcriber.max_bytes",
		"chatbox.transcriber.total_timeout", "chatbox.transcriber.apikey", "chatbox.speech.type", "chatbox.speech.format", "chatbox.speech.max_chars",
		"chatbox.ai_files.external", "chatbox.ai_files.fetch_port", "chatbox.ai_files.fetch_bytes",
	} {
		assert.Contains(t, err.Error(), want)
	}
	assert.NotContains(t, err.Error(), "s3cr3t")
}

func TestLoad_voiceNeedsAKeyFromSomewhere(t *testing.T) {
	const provider = "\n[[chatbox.llm.providers]]\nid = \"d\"\ntype = \"dify\"\napiKey = \"app-1234567\"\n"
	for text, want := range map[string]string{
		"[chatbox.transcriber]\ntype = \"openai\"":                                                           "chatbox.transcriber.apiKey",
		"[chatbox.transcriber]\ntype = \"openai\"" + provider:                                                "chatbox.transcriber.apiKey",
		"[chatbox.transcriber]\ntype = \"dify\"" + provider:                                                  "",
		"[chatbox.transcriber]\ntype = \"openai\"\napiKey = \"sk-1234567\"":                                  "",
		"[chatbox.transcriber]\ntype = \"openai\"\nendpoint = \"http://127.0.0.1:8000/v1\"":                  "",
		"[chatbox.transcriber]\ntype = \"none\"\n[chatbox.speech]\ntype = \"openai\"":                        "",
		"[chatbox.speech]\ntype = \"openai\"\nenabled = true":                                                "chatbox.speech.apiKey",
		"[chatbox.speech]\ntype = \"dify\"\nenabled = true\napiKey = \"your-key\"":                           "chatbox.speech.apiKey",
		"[chatbox.speech]\nenabled = true":                                                                   "",
		"[chatbox.transcriber]\ntype = \"openai\"\napiKey = \"env:NO_SUCH_VARIABLE\"":                        "NO_SUCH_VARIABLE",
		"[chatbox.transcriber]\ntype = \"openai\"\napiKey = \"k\"\n[chatbox.transcriber.headers]\nX = \"y\"": "",
	} {
		_, _, err := load(t, config.LoadOptions{}, minimal(t), text)
		if want == "" {
			assert.NoError(t, err, text)
		} else {
			assert.ErrorContains(t, err, want, text)
		}
	}
}
