package main

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/real-rm/chatbox/providers/files"
	"github.com/real-rm/chatbox/providers/llm"
	"github.com/real-rm/chatbox/server/config"
)

// A file of an answer is one that the intake takes, field by field.
var _ = files.Made(llm.File{})

func buildWith(t *testing.T, text string) (*parts, string, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "app.toml")
	require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
	s, _, err := config.Load(config.LoadOptions{Files: []string{path}, Dev: true, DevState: t.TempDir()})
	require.NoError(t, err)
	var log bytes.Buffer
	p, err := build(s, slog.New(slog.NewJSONHandler(&log, nil)))
	if err == nil {
		t.Cleanup(p.close)
	}
	return p, log.String(), err
}

// The order of choice reaches from the settings to the parts.
func TestBuild_makesTheVoiceThatTheSettingsSay(t *testing.T) {
	const provider = "[[chatbox.llm.providers]]\nid = \"m\"\ntype = \"openai\"\nmodel = \"m\"\napiKey = \"sk-0123456789\"\n"
	for name, c := range map[string]struct {
		text          string
		hears, speaks bool
		webm          bool
	}{
		"nothing":            {"", false, false, false},
		"by the provider":    {provider, true, false, true},
		"switched off":       {provider + "[chatbox.transcriber]\ntype = \"none\"\n", false, false, false},
		"speech switched on": {provider + "[chatbox.speech]\nenabled = true\n", true, true, true},
		"own service":        {"[chatbox.transcriber]\ntype = \"dify\"\napiKey = \"app-0123456789\"\n", true, false, false},
	} {
		t.Run(name, func(t *testing.T) {
			p, _, err := buildWith(t, c.text)
			require.NoError(t, err)
			assert.Equal(t, []bool{c.hears, c.speaks, c.webm}, []bool{p.voice.CanTranscribe(), p.voice.CanSpeak(), p.voice.Reads("audio/webm", "")})
		})
	}
}

func TestBuild_ofAVoiceThatCannotWork_saysWhichSettingsWithoutTheirSecrets(t *testing.T) {
	_, log, err := buildWith(t, "[chatbox.transcriber]\ntype = \"openai\"\napiKey = \"sk-s3cr3t\\n\"\n")
	require.ErrorContains(t, err, "chatbox.transcriber")
	require.ErrorContains(t, err, "apiKey holds characters that cannot be sent")
	assert.NotContains(t, err.Error()+log, "s3cr3t")
}

func TestBuild_takesInFilesByThePolicyOfTheSettings(t *testing.T) {
	made := []files.Made{{URL: "https://example.com/x.png"}}
	for policy, want := range map[string]files.Taken{
		"link": {Links: []files.Link{{Name: "x.png", URL: "https://example.com/x.png"}}},
		"drop": {Dropped: 1},
	} {
		p, _, err := buildWith(t, "[chatbox.ai_files]\nexternal = \""+policy+"\"\n")
		require.NoError(t, err)
		got, err := p.intake.Take(t.Context(), "s", made)
		require.NoError(t, err)
		assert.Equal(t, want, got)
	}
}

// Promise 24: what a turn is told of a file is an id, or a link, or an error.
func TestMade_tellsTheTurnWhatBecameOfAFile(t *testing.T) {
	in, err := files.NewIntake(files.IntakeOptions{})
	require.NoError(t, err)
	id, link, err := made{in}.Take(t.Context(), "s", llm.File{Name: "a.png", URL: "https://example.com/a.png"})
	require.NoError(t, err)
	assert.Empty(t, id)
	assert.Equal(t, "https://example.com/a.png", link)
	_, link, err = made{in}.Take(t.Context(), "s", llm.File{URL: "http://127.0.0.1/a.png"})
	require.Error(t, err)
	assert.Empty(t, link)
}

// It goes by the policy of the settings, and no page is ever shown a link into a private network.
func TestBuild_givesTurnsTheFilesOfAnswersByThePolicyOfTheSettings(t *testing.T) {
	for policy, want := range map[string]string{"link": "https://example.com/x.png", "drop": ""} {
		p, _, err := buildWith(t, "[chatbox.ai_files]\nexternal = \""+policy+"\"\n")
		require.NoError(t, err)
		id, link, err := made{p.intake}.Take(t.Context(), "p01-s", llm.File{URL: "https://example.com/x.png"})
		require.NoError(t, err)
		assert.Empty(t, id)
		assert.Equal(t, want, link)
		_, link, _ = made{p.intake}.Take(t.Context(), "p01-s", llm.File{URL: "https://10.0.0.1/x.png"})
		assert.Empty(t, link)
	}
}
