package main

import (
	"os"
	"path/filepath"
	"regexp"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/real-rm/chatbox/providers/llm"
	"github.com/real-rm/chatbox/server/config"
)

// Whoever copies an example of docs/providers.md gets a service that starts, without a warning.
func TestProvidersDoc_everyExampleStarts(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("docs", "providers.md"))
	require.NoError(t, err)
	examples := regexp.MustCompile("(?ms)^## ([^\n]+)\n\n```toml\n(.*?)^```$").FindAllSubmatch(text, -1)
	env := []string{}
	for _, name := range regexp.MustCompile(`env:(\w+)"`).FindAllSubmatch(text, -1) {
		env = append(env, string(name[1])+"=a-key-of-the-provider")
	}
	types := map[string]bool{}
	for _, example := range examples {
		path := filepath.Join(t.TempDir(), "models.toml")
		require.NoError(t, os.WriteFile(path, example[2], 0o600))
		s, warnings, err := config.Load(config.LoadOptions{Files: []string{path}, Env: env, Dev: true, DevState: t.TempDir()})
		require.NoError(t, err, "%s", example[1])
		assert.Len(t, warnings, 1, "%s: of dev mode only", example[1])
		set, err := llm.NewSet(modelsOf(s, nil))
		require.NoError(t, err, "%s", example[1])
		set.Close()
		for _, p := range s.Chatbox.LLM.Providers {
			types[p.Type] = true
		}
	}
	require.Len(t, examples, 6)
	require.Equal(t, map[string]bool{llm.TypeOpenAI: true, llm.TypeAnthropic: true, llm.TypeDify: true}, types)
}
