package oracle

import (
	"context"
	"net"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/real-rm/chatbox/internal/llmfake"
	"github.com/real-rm/chatbox/internal/rig"
	"github.com/real-rm/chatbox/providers/llm"
)

// serve runs the scripted server and returns it with its address.
func serve(t *testing.T, o llmfake.Options) (*llmfake.Server, string) {
	t.Helper()
	f := llmfake.New(o)
	l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(rig.FreePort())))
	require.NoError(t, err)
	srv := &http.Server{Handler: f, ReadHeaderTimeout: 10 * time.Second}
	done := make(chan error, 1)
	go func() { done <- srv.Serve(l) }()
	t.Cleanup(func() {
		f.Close()
		require.NoError(t, srv.Close())
		require.ErrorIs(t, <-done, http.ErrServerClosed)
	})
	return f, "http://" + l.Addr().String() + "/v1"
}

// Feature: chat-application-websocket, Property 29 (Promise 29): a failure means the same whichever provider fails.
func TestAdapters_understandTheSameInEveryFormat(t *testing.T) {
	both := func(kinds ...llm.Kind) []llm.Kind { return kinds }
	questions := map[string]struct {
		text  string // empty: anything
		kinds []llm.Kind
	}{
		"!tokens 5":                          {text: "t1 t2 t3 t4 t5"},
		"!tokens 5 drip=1":                   {text: "t1 t2 t3 t4 t5"},
		"!slow 0 drip=1 世界 🙂":                {},
		"!reason 3":                          {},
		"!nousage":                           {},
		"!length":                            {text: "t1 t2 t3 t4 t5"},
		"!error 401":                         {kinds: both(llm.KindAuth)},
		"!error 403":                         {kinds: both(llm.KindPermission)},
		"!error 413":                         {kinds: both(llm.KindTooLarge)},
		"!error 429 retry=2":                 {kinds: both(llm.KindRate)},
		"!error 500":                         {kinds: both(llm.KindServer)},
		"!mid server 2":                      {text: "t1 t2", kinds: both(llm.KindServer)},
		"!mid overloaded 2":                  {text: "t1 t2", kinds: both(llm.KindOverloaded, llm.KindServer)}, // Dify wraps what it is told
		"!mid rate 2":                        {text: "t1 t2", kinds: both(llm.KindRate, llm.KindServer)},
		"!mid quota 2":                       {text: "t1 t2", kinds: both(llm.KindQuota)},
		"!fail quota 2":                      {text: "t1 t2", kinds: both(llm.KindQuota)},
		"!cut 2":                             {text: "t1 t2", kinds: both(llm.KindTruncated)},
		"!abort 2 20ms":                      {kinds: both(llm.KindNetwork, llm.KindTruncated)},
		"!cut 0":                             {kinds: both(llm.KindTruncated)},
		"!error 429 code=insufficient_quota": {kinds: both(llm.KindQuota)},
		"!error 400 code=context_length_exceeded": {kinds: both(llm.KindContextLength, llm.KindServer)}, // likewise
	}
	for _, tongue := range tongues[:spoken] {
		f, url := serve(t, llmfake.Options{Key: key})
		c := tongue.config
		c.Endpoint, c.APIKey, c.Model, c.MaxOutput = url, key, "model-1", 500
		for text, want := range questions {
			t.Run(c.ID+" "+text, func(t *testing.T) {
				f.Reset()
				set := newSet(t, c) // which has had no failures yet
				var got strings.Builder
				res, err := set.Stream(t.Context(), llm.Request{Messages: []llm.Message{question(text)}, User: "user-1"}, llm.Observer{}, func(d llm.Delta) error {
					got.WriteString(d.Text)
					return nil
				})
				require.Len(t, f.Bill().Lines, 1, "asked once")
				line := f.Bill().Lines[0]
				if want.text != "" {
					require.Equal(t, want.text, strings.TrimSpace(got.String()))
				}
				if want.kinds != nil {
					require.Contains(t, want.kinds, llm.KindOf(err), "%v", err)
					require.NotContains(t, err.Error(), key)
				} else {
					require.NoError(t, err)
					require.NotEmpty(t, got.String())
				}
				if !res.Usage.Estimated {
					require.Equal(t, llm.Usage{In: line.Prompt, Out: line.Completion, Total: line.Total, Cached: line.Cached}, res.Usage)
				}
				if err == nil && text != "!nousage" {
					require.False(t, res.Usage.Estimated, "the provider has told")
				}
			})
		}
	}
}

// Beyond B8: an answer that is given up costs no more from then on, whichever provider gives it: connections are closed,
// and Dify is asked once to stop.
func TestAdapters_givenUp_stopTheProvider(t *testing.T) {
	for _, tongue := range tongues[:spoken] {
		t.Run(tongue.config.ID, func(t *testing.T) {
			f, url := serve(t, llmfake.Options{Key: key})
			c := tongue.config
			c.Endpoint, c.APIKey, c.Model, c.MaxOutput = url, key, "model-1", 500_000
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			said := 0
			_, err := newSet(t, c).Stream(ctx, llm.Request{Messages: []llm.Message{question("!tokens 100000 1ms")}, User: "user-1"}, llm.Observer{}, func(llm.Delta) error {
				if said++; said == 5 {
					cancel()
				}
				return nil
			})
			require.Equal(t, llm.KindCancelled, llm.KindOf(err))
			require.Eventually(t, func() bool { return f.Bill().Running == 0 }, 10*time.Second, time.Millisecond)
			require.Less(t, f.Bill().Sum.Completion, int64(5000))
			want := "cancelled"
			if c.Type == llm.TypeDify {
				want = "stopped"
				require.Len(t, f.Stops(), 1)
				require.True(t, f.Stops()[0].Stopped)
				require.Equal(t, "user-1", f.Stops()[0].User)
			}
			require.Equal(t, want, f.Bill().Lines[0].Outcome)
		})
	}
}
