package main

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/real-rm/chatbox/sessionstore/seal"
)

// What would keep the service from starting is a mistake for config check, also where only making the providers shows it.
func TestConfigCheck_findsWhatAStartWouldRefuse(t *testing.T) {
	keyset, err := seal.NewKeyset()
	require.NoError(t, err)
	path := filepath.Join(t.TempDir(), "app.toml")
	tell := func(models string) (code int, out, errs string) {
		require.NoError(t, os.WriteFile(path, []byte(`
redis.url = "redis://127.0.0.1:1"
encryption.keyset = "`+keyset+`"
dbs.chat.uri = "mongodb://127.0.0.1:1"
chatbox.jwt_secret = "b1946ac92492d2347c6235b4d2611184"
`+models), 0o600))
		var o, e bytes.Buffer
		code = run(t.Context(), []string{"config", "check", "--config", path}, nil, &o, &e)
		return code, o.String(), e.String()
	}

	code, out, errs := tell("[[chatbox.llm.providers]]\nid = \"a\"\ntype = \"openai\"\nmodel = \"m\"\napiKey = \"k3y\"\n")
	require.Equal(t, 0, code, errs)
	require.Equal(t, "the settings are usable\n", out)

	code, out, errs = tell("[[chatbox.llm.providers]]\nid = \"a\"\ntype = \"openai\"\nmodel = \"m\"\n" +
		"[[chatbox.llm.providers]]\nid = \"b\"\ntype = \"openai\"\nmodel = \"m\"\napiKey = \"k3y\"\nmax_tokens_field = \"most\"\nsystem_role = \"boss\"\n")
	require.Equal(t, 1, code)
	require.Empty(t, out)
	require.Contains(t, errs, "chatbox.llm.providers: llm provider 1 (a): apiKey is missing")
	require.Contains(t, errs, `llm provider 2 (b): max_tokens_field "most" is unknown`)
	require.Contains(t, errs, `llm provider 2 (b): system_role "boss" is unknown`)
}
