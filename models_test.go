package main

import (
	"os"
	"path/filepath"
	"reflect"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/real-rm/chatbox/providers/llm"
	"github.com/real-rm/chatbox/server/config"
	"github.com/real-rm/chatbox/server/protocol"
)

// Nothing that can be set about models is lost on its way to them: a value in every setting gives a value in every option.
func TestModelsOf_leavesNothingOut(t *testing.T) {
	var m config.LLM
	fill(t, reflect.ValueOf(&m).Elem())
	got := modelsOf(&config.Settings{Chatbox: config.Chatbox{LLM: m}}, nil)
	got.Transport, got.Log = nil, nil
	noZero(t, reflect.ValueOf(got), "Transport", "Log")
	require.Len(t, got.Providers, 1)
	noZero(t, reflect.ValueOf(got.Providers[0]))
	require.Equal(t, map[string]string{"text": "secret"}, got.Providers[0].Inputs)
}

func TestModelsOf_zeroMeansNone(t *testing.T) {
	got := modelsOf(&config.Settings{}, nil)
	require.Negative(t, got.RetryFloor)
	require.Negative(t, got.RetryShare)
}

func TestProvidersOf_beginsWithTheDefault(t *testing.T) {
	got := providersOf(&config.Settings{Chatbox: config.Chatbox{LLM: config.LLM{
		DefaultModel: "b", Providers: []config.Provider{{ID: "a"}, {ID: "b"}, {ID: "c"}},
	}}})
	require.Equal(t, []string{"b", "a", "c"}, []string{got[0].ID, got[1].ID, got[2].ID})
}

// A model's own system prompt is taken, also where all others have another one.
func TestSystemPrompts_areThoseOfTheModels(t *testing.T) {
	path := filepath.Join(t.TempDir(), "app.toml")
	require.NoError(t, os.WriteFile(path, []byte("[chatbox.llm]\nsystem_prompt = \"be kind\"\n"+
		"[[chatbox.llm.providers]]\nid = \"a\"\ntype = \"openai\"\nmodel = \"m\"\n"+
		"[[chatbox.llm.providers]]\nid = \"b\"\ntype = \"openai\"\nmodel = \"m\"\nsystem_prompt = \"be short\"\n"), 0o600))
	s, _, err := config.Load(config.LoadOptions{Files: []string{path}, Dev: true, DevState: t.TempDir()})
	require.NoError(t, err)
	require.Equal(t, map[string]string{"a": "be kind", "b": "be short"}, systemPrompts(s))
}

func TestOffered_tellsWhatModelsCanDo(t *testing.T) {
	require.Equal(t, []protocol.Model{{ID: "a", Name: "A", Vision: true, Audio: true, Files: []string{"pdf"}}},
		offered([]llm.Model{{ID: "a", Name: "A", Provider: "openai", Vision: true, Audio: true, Files: []string{"pdf"}}}))
}

// fill puts a value into every field.
func fill(t *testing.T, v reflect.Value) {
	t.Helper()
	for i := range v.NumField() {
		f := v.Field(i)
		switch x := f.Addr().Interface().(type) {
		case *string:
			*x = "text"
		case *int:
			*x = 3
		case *float64:
			*x = 0.5
		case *bool:
			*x = true
		case **bool:
			*x = new(bool)
		case *time.Duration:
			*x = time.Second
		case *[]string:
			*x = []string{"text"}
		case *config.Secret:
			*x = config.NewSecret("secret")
		case *map[string]config.Secret:
			*x = map[string]config.Secret{"text": config.NewSecret("secret")}
		case *[]config.Provider:
			*x = make([]config.Provider, 1)
			fill(t, reflect.ValueOf(&(*x)[0]).Elem())
		default:
			require.Failf(t, "no value", "for %s", f.Type())
		}
	}
}

// noZero fails for each field that has no value, but for those named.
func noZero(t *testing.T, v reflect.Value, but ...string) {
	t.Helper()
	for i := range v.NumField() {
		name := v.Type().Field(i).Name
		if v.Field(i).IsZero() {
			require.Contains(t, but, name, "%s is not set", name)
		}
	}
}
