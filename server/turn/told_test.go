package turn

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/real-rm/chatbox/providers/llm"
	"github.com/real-rm/chatbox/sessionstore"
)

// told is what users saw while they waited.
func (f *fakeStore) told() (out []string) {
	f.look(func() {
		for _, ev := range f.published {
			if ev.Type == sessionstore.TypeLoading {
				out = append(out, strings.TrimSpace(string(rune('0'+ev.Try))+" "+ev.Content))
			}
		}
	})
	return out
}

// Feature: chat-application-websocket, Properties 29 and 30 (Promises 29, 30): each further try and each other model is
// told; the answer names who gave it, while the session keeps the model that was chosen.
func TestTurn_tellsWhatItTries(t *testing.T) {
	for name, c := range map[string]struct {
		tries []tryScript
		told  []string
		by    string
		model string
	}{
		"at once": {[]tryScript{{text: "a"}}, []string{"1"}, "", "default"},
		"at the second try": {[]tryScript{{fail: llm.KindServer}, {fail: llm.KindServer}, {text: "a"}},
			[]string{"1", "2 Trying again", "3 Trying again"}, "", "default"},
		"by another": {[]tryScript{{fail: llm.KindQuota}, {text: "a"}}, []string{"1", "1 Asking Second instead"}, "Second", "other"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := &fakeStore{model: "default"}
				f.ask("q1", "hello")
				m := &scripted{tries: c.tries}
				r := newReplica(t, f, m, func(o *Options) { o.Catalog = m })
				defer r.down()
				synctest.Wait()
				r.Start(sid)
				pass(time.Minute)
				final, there := f.final()
				require.True(t, there)
				assert.Equal(t, c.told, f.told())
				assert.Equal(t, c.by, final.Metadata[sessionstore.MetaAnsweredBy])
				assert.Equal(t, c.model, final.ModelID)
				assert.Equal(t, "a", final.Content)
				f.ask("q2", "and now?")
				r.Start(sid)
				pass(time.Minute)
				assert.Equal(t, "default", f.finals[1].ModelID)
			})
		})
	}
}

// errOther is the failure of a model that was asked in place of the chosen one.
var errOther = &llm.Error{Kind: llm.KindServer, Provider: "other"}

// errPaused stands for an app that waits for a person, which is no error.
var errPaused = errors.New("paused")

// Feature: chat-application-websocket, Property 29 (Promise 29): a failure says what can be done about it. After the
// first words the partial is kept and can be continued; before them a person is offered. An app that waits for a person
// has not failed.
func TestTurn_saysWhatCanBeDoneAboutAFailure(t *testing.T) {
	for name, c := range map[string]struct {
		text string
		err  error
		want map[string]string
	}{
		"nobody can be had": {"", &llm.Error{Kind: llm.KindOverloaded, RetryAfter: 7 * time.Second},
			map[string]string{"failed": "LLM_UNAVAILABLE", "help": "offered", "retry_after": "7000"}},
		"broken off":              {"half", &llm.Error{Kind: llm.KindTruncated}, map[string]string{"failed": "LLM_UNAVAILABLE", "interrupted": "failed"}},
		"broken off by another":   {"half", errOther, map[string]string{"failed": "LLM_UNAVAILABLE", "interrupted": "failed", "answered_by": "other"}},
		"nothing said by another": {"", errOther, map[string]string{"failed": "LLM_UNAVAILABLE", "help": "offered"}},
		"nothing said":            {"", nil, map[string]string{"failed": "LLM_UNAVAILABLE", "help": "offered"}},
		"our own mistake":         {"", errors.New("a defect"), map[string]string{"failed": "LLM_UNAVAILABLE"}},
		"a whole answer":          {"text", nil, map[string]string{}},
		"nothing, for a person":   {"", errPaused, map[string]string{"paused": "true", "help": "offered"}},
		"a word, for a person":    {"wait", errPaused, map[string]string{"paused": "true", "help": "offered"}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := &fakeStore{}
				f.ask("q1", "hello")
				r, stop := start(t, f, fakeModels{stream: func(_ context.Context, _ llm.Request, emit func(llm.Delta) error) (llm.Result, error) {
					if c.text != "" {
						if err := emit(llm.Delta{Text: c.text}); err != nil {
							return llm.Result{}, err
						}
					}
					if errors.Is(c.err, errOther) {
						return llm.Result{Model: "other"}, c.err
					}
					if errors.Is(c.err, errPaused) {
						return llm.Result{Finish: llm.FinishStop, Paused: true}, nil
					}
					return llm.Result{Finish: llm.FinishStop}, c.err
				}})
				defer stop()
				r.Start(sid)
				pass(time.Second)
				final, there := f.final()
				require.True(t, there)
				c.want[sessionstore.MetaAnswers] = "q1"
				assert.Equal(t, c.want, final.Metadata)
				assert.Equal(t, c.text, final.Content)
			})
		})
	}
}

// Promises 13, 62: the answer says when its first words came, what it cost, and how much of that was cached.
func TestTurn_measuresTimeAndTokens(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeStore{}
		f.ask("q1", "hello")
		r, stop := start(t, f, fakeModels{stream: func(_ context.Context, _ llm.Request, emit func(llm.Delta) error) (llm.Result, error) {
			time.Sleep(300 * time.Millisecond)
			err := emit(llm.Delta{Text: "a"})
			time.Sleep(time.Second)
			return llm.Result{Finish: llm.FinishStop, Usage: llm.Usage{In: 10, Out: 2, Total: 12, Cached: 4}}, err
		}})
		defer stop()
		r.Start(sid)
		pass(time.Minute)
		final, _ := f.final()
		assert.EqualValues(t, 300, final.FirstToken)
		assert.EqualValues(t, 1300, final.ResponseTime)
		assert.Equal(t, sessionstore.Spent{Tokens: 12, TokensIn: 10, TokensOut: 2, TokensCached: 4, Calls: 1}, final.Spent)
	})
}

// Beyond B4, part C 3: whatever ends an answer from outside, the connection to the provider is closed within 100 ms, and
// at most one final is written by the turn, by the one who stops it.
func TestTurn_closesTheProvidersConnectionWithinATenthOfASecond(t *testing.T) {
	for name, c := range map[string]struct {
		end    func(r *replica, f *fakeStore)
		finals int
		freed  int
	}{
		"stop": {func(r *replica, _ *fakeStore) {
			r.Signal(sessionstore.Message{SessionID: sid, Type: sessionstore.TypeStop, Frame: []byte(`{"type":"stop"}`)})
		}, 1, 0},
		"takeover": {func(r *replica, f *fakeStore) {
			f.steal()
			r.Signal(sessionstore.Message{SessionID: sid, Type: sessionstore.TypeAdminJoin})
		}, 0, 0},
		"end": {func(r *replica, f *fakeStore) {
			f.steal()
			r.Signal(sessionstore.Message{SessionID: sid, Type: sessionstore.TypeEnded})
		}, 0, 0},
		"drain": {func(r *replica, _ *fakeStore) { r.down() }, 0, 1},
	} {
		for where, chunks := range map[string]string{"before the first token": "", "in the middle": `data: {"choices":[{"index":0,"delta":{"content":"Hi"}}]}` + "\n\n"} {
			t.Run(name+" "+where, func(t *testing.T) {
				var took []time.Duration
				for range 5 {
					began, gone := make(chan struct{}), make(chan time.Time, 1)
					provider := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
						_, _ = io.Copy(io.Discard, r.Body)
						w.Header().Set("Content-Type", "text/event-stream")
						_, _ = io.WriteString(w, ": here\n\n"+chunks)
						w.(http.Flusher).Flush()
						close(began)
						<-r.Context().Done()
						gone <- time.Now()
					}))
					models, err := llm.NewSet(llm.SetOptions{Providers: []llm.Config{{ID: "default", Type: llm.TypeOpenAI, Endpoint: provider.URL + "/v1"}}})
					require.NoError(t, err)
					f := &fakeStore{}
					f.ask("q1", "hello")
					r := newReplica(t, f, models, nil)
					r.Start(sid)
					<-began
					if chunks != "" {
						eventually(t, "text", f.shown)
					}
					at := time.Now()
					c.end(r, f)
					took = append(took, (<-gone).Sub(at))
					eventually(t, "the end of the turn", func() bool { return r.Running() == 0 })
					r.down()
					assert.Len(t, f.finals, c.finals)
					assert.Equal(t, c.freed, f.released)
					provider.Close()
					models.Close()
				}
				slices.Sort(took)
				assert.Less(t, took[len(took)/2], 100*time.Millisecond, "the median; the machine may be busy: %v", took)
			})
		}
	}
}

// keeper stores files, slowly.
type keeper struct {
	wait time.Duration
	fail bool
}

func (k *keeper) Take(ctx context.Context, _ string, f llm.File) (fileID, link string, err error) {
	select {
	case <-time.After(k.wait):
	case <-ctx.Done():
		return "", "", ctx.Err()
	}
	switch {
	case k.fail:
		return "", "", errors.New("no room")
	case f.URL != "":
		return "", f.URL, nil
	default:
		return "id-" + f.Name, "", nil
	}
}

// Feature: chat-application-websocket, Property 24 (Promise 24): files that a model makes are kept beside its text, which
// does not wait for them; what cannot be kept is a link, or is named.
func TestTurn_keepsTheFilesOfAnAnswer(t *testing.T) {
	made := []llm.File{{Name: "a.png"}, {Name: "b c.png", URL: "https://files.example/b?sig=1"}, {Name: "d.png", URL: "http://10.0.0.1/x"}}
	for name, c := range map[string]struct {
		files Files
		text  string
		want  map[string]string
	}{
		"kept":      {&keeper{wait: 10 * time.Second}, "look", map[string]string{"file_ids": "id-a.png", "links": `[{"name":"b c.png","url":"https://files.example/b?sig=1"}]`, "files_lost": "[file d.png]"}},
		"no keeper": {nil, "look", map[string]string{"links": `[{"name":"b c.png","url":"https://files.example/b?sig=1"}]`, "files_lost": "[file a.png]\n[file d.png]"}},
		"refused":   {&keeper{fail: true}, "look", map[string]string{"files_lost": "[file a.png]\n[file b c.png]\n[file d.png]"}},
		"too slow":  {&keeper{wait: time.Hour}, "look", map[string]string{"files_lost": "[file a.png]\n[file b c.png]\n[file d.png]"}},
		"no text":   {&keeper{}, "", map[string]string{"file_ids": "id-a.png", "links": `[{"name":"b c.png","url":"https://files.example/b?sig=1"}]`, "files_lost": "[file d.png]"}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := &fakeStore{}
				f.ask("q1", "hello")
				models := fakeModels{stream: func(_ context.Context, _ llm.Request, emit func(llm.Delta) error) (llm.Result, error) {
					for _, file := range made {
						if err := emit(llm.Delta{File: &file}); err != nil {
							return llm.Result{}, err
						}
					}
					if c.text == "" {
						return llm.Result{Finish: llm.FinishStop}, nil
					}
					return llm.Result{Finish: llm.FinishStop}, emit(llm.Delta{Text: c.text})
				}}
				r := newReplica(t, f, models, func(o *Options) { o.Files, o.Lease = c.files, 10*time.Second })
				defer r.down()
				synctest.Wait()
				r.Start(sid)
				synctest.Wait()
				assert.Equal(t, c.text, strings.Join(f.deltas, ""), "text is out at once")
				pass(time.Minute)
				final, there := f.final()
				require.True(t, there)
				c.want[sessionstore.MetaAnswers] = "q1"
				assert.Equal(t, c.want, final.Metadata)
				assert.Empty(t, final.Metadata[sessionstore.MetaFailed])
			})
		})
	}
}

// A link is shown to users: only what a browser opens safely is one.
func TestSafeLink_takesHTTPSOnly(t *testing.T) {
	for in, want := range map[string]string{
		"https://a.example/x?y=1":    "https://a.example/x?y=1",
		"https://a.example/with sp":  "https://a.example/with%20sp",
		"http://a.example/x":         "",
		"javascript:alert(1)":        "",
		"https://user:pw@a.example/": "",
		"https:///x":                 "",
		"data:text/html,x":           "",
		"":                           "",
		"https://a.example/?a b":     "",
	} {
		assert.Equal(t, want, safeLink(in), in)
	}
}

// A stop does not wait for files.
func TestTurn_doesNotWaitForFilesWhenStopped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeStore{}
		f.ask("q1", "hello")
		models := fakeModels{stream: func(_ context.Context, _ llm.Request, emit func(llm.Delta) error) (llm.Result, error) {
			return llm.Result{Finish: llm.FinishStop}, errors.Join(emit(llm.Delta{Text: "a"}), emit(llm.Delta{File: &llm.File{Name: "a.png"}}))
		}}
		r := newReplica(t, f, models, func(o *Options) { o.Files = &keeper{wait: time.Hour} })
		defer r.down()
		synctest.Wait()
		r.Start(sid)
		pass(50 * time.Millisecond)
		r.Signal(sessionstore.Message{SessionID: sid, Type: sessionstore.TypeStop, Frame: json.RawMessage(`{"type":"stop"}`)})
		synctest.Wait()
		final, there := f.final()
		require.True(t, there)
		assert.Equal(t, "true", final.Metadata[sessionstore.MetaStopped])
	})
}

// A join or an end that the bus brings late is older than the generation that runs by then: it ended another one.
func TestSignal_thatIsOlderThanTheGenerationIsIgnored(t *testing.T) {
	for _, typ := range []string{sessionstore.TypeAdminJoin, sessionstore.TypeEnded} {
		t.Run(typ, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := &fakeStore{events: []sessionstore.Event{question("q1"), reply("a1", "q1"), {Header: sessionstore.Header{Type: typ}, Seq: 3}}}
				f.ask("q2", "and now?") // seq 4
				r, stop := start(t, f, words(time.Second, "a", "b", "c"))
				defer stop()
				r.Start(sid)
				pass(1500 * time.Millisecond)
				r.Signal(sessionstore.Message{SessionID: sid, Type: typ, Seq: 3})
				pass(time.Minute)
				final, there := f.final()
				require.True(t, there)
				assert.Equal(t, "abc", final.Content)

				f.ask("q3", "more")
				r.Start(sid)
				pass(1500 * time.Millisecond)
				r.Signal(sessionstore.Message{SessionID: sid, Type: typ, Seq: 99})
				pass(time.Minute)
				assert.Len(t, f.finals, 1, "a newer one takes effect at once")
			})
		})
	}
}
