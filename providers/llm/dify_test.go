package llm

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// Promise 28: what every kind of app sends is forwarded as it arrives, and means the same in whichever way it is
// written down.
func TestDify_readsWhatAppsSend(t *testing.T) {
	ways := map[string]func(string) string{
		"as recorded":     func(s string) string { return s },
		"CRLF":            func(s string) string { return strings.ReplaceAll(s, "\n", "\r\n") },
		"CR":              func(s string) string { return strings.ReplaceAll(s, "\n", "\r") },
		"byte order mark": func(s string) string { return "\ufeff" + s },
		"comments":        func(s string) string { return ": hi\n\n" + strings.ReplaceAll(s, "data:", ": hi\ndata:") },
	}
	for name, stream := range difyRecorded(t) {
		for way, write := range ways {
			t.Run(name+" "+way, func(t *testing.T) {
				a := newDifyApp(difyAnswer(200, write(stream)))
				difyShapes[name].check(t, askDify(t.Context(), newDifySet(t, a), Request{}))
			})
		}
	}
}

// The bytes may be cut anywhere by the network, also inside a character.
func TestDify_arrivingTwoBytesAtATime_isTheSame(t *testing.T) {
	for name, stream := range difyRecorded(t) {
		t.Run(name, func(t *testing.T) {
			base := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if !strings.HasSuffix(r.URL.Path, "/chat-messages") {
					return
				}
				w.Header().Set("Content-Type", "text/event-stream")
				w.WriteHeader(http.StatusOK)
				for b := strings.ReplaceAll(stream, "http://llm.test", "http://"+r.Host); b != ""; {
					n := min(2, len(b))
					_, _ = io.WriteString(w, b[:n])
					_ = http.NewResponseController(w).Flush()
					b = b[n:]
				}
			}))
			want := difyShapes[name]
			want.files = slices.Clone(want.files)
			for i, f := range want.files {
				want.files[i] = strings.Replace(f, "http://llm.test", base, 1)
			}
			want.check(t, askDify(t.Context(), newDifySet(t, nil, func(c *Config) { c.Endpoint = base + "/v1" }), Request{}))
		})
	}
}

// difyUntil is how much of a stream must have come for its event of that name to be known.
func difyUntil(stream, event string) int {
	at := strings.Index(stream, `"event": "`+event+`"`)
	if at < 0 {
		return len(stream) + 1
	}
	return at + strings.Index(stream[at:], "\n\n") + 2
}

// difyCuts is where a stream is cut: at every byte of the shapes that differ most, around every event of the others, which
// would take a minute.
func difyCuts(name, stream string) []int {
	var out []int
	every := slices.Contains([]string{"chatbot", "chatbot-utf8", "chatbot-file", "new-agent-other-words", "chatflow-paused"}, name)
	for i := range len(stream) {
		if every || i < 2 || strings.Contains(stream[i-2:min(i+3, len(stream))], "\n\n") {
			out = append(out, i)
		}
	}
	return out
}

// An answer is complete only if Dify has said so. A stream that ends before is truncated, wherever that happens, its
// text is one that was to be seen on the way, and its run, as soon as it is known, is stopped once, under the same user.
func TestDify_cutAtEveryByte_isCompleteOnlyAfterItsTerminalEvent(t *testing.T) {
	breaks := map[string]struct {
		err  error
		kind Kind
	}{"cleanly": {nil, KindTruncated}, "by the network": {io.ErrUnexpectedEOF, KindNetwork}}
	for how, b := range breaks {
		for name, stream := range difyRecorded(t) {
			want := difyShapes[name]
			if want.kind != "" {
				continue
			}
			t.Run(name+" "+how, func(t *testing.T) {
				all := askDify(t.Context(), newDifySet(t, newDifyApp(difyAnswer(200, stream))), Request{}).states
				whole, broken := difyUntil(stream, cmp.Or(want.end, "message_end")), difyUntil(stream, want.broken)
				for _, i := range difyCuts(name, stream) {
					a := newDifyApp(difySteps(step{text: stream[:i], err: b.err}, step{err: b.err}))
					s := newDifySet(t, a)
					o := askDify(t.Context(), s, Request{})
					s.Close()
					require.Contains(t, all, o.text, "cut at %d", i)
					stops := a.requests("/stop")
					if i >= whole {
						require.NoError(t, o.err, "cut at %d", i)
						require.Empty(t, stops)
						continue
					}
					if i >= broken {
						require.Equal(t, KindServer, o.kind(), "cut at %d", i)
						require.Empty(t, stops, "it is over")
						continue
					}
					require.Equal(t, b.kind, o.kind(), "cut at %d", i)
					if i < strings.Index(stream, "\n\n")+2 {
						require.Empty(t, stops, "its run is not known yet")
						continue
					}
					require.Len(t, stops, 1, "cut at %d", i)
					require.Equal(t, "/v1/chat-messages/"+difyTask+"/stop", stops[0].path)
					require.Equal(t, difyAsker, stops[0].user)
					require.Equal(t, difyConversation, o.Conversation)
				}
			})
		}
	}
}

// A stream that falls silent is given up: before its first event at the limit for the first token, then at that for
// silence, and soon once the answer is complete, which it then is.
func TestDify_stalledAfterEachEvent(t *testing.T) {
	for name, stream := range difyRecorded(t) {
		want := difyShapes[name]
		if want.kind != "" {
			continue
		}
		t.Run(name, func(t *testing.T) {
			whole, broken := difyUntil(stream, cmp.Or(want.end, "message_end")), difyUntil(stream, want.broken)
			for at := 0; at < len(stream); at += strings.Index(stream[at:], "\n\n") + 2 {
				synctest.Test(t, func(t *testing.T) {
					a := newDifyApp(difySteps(step{text: stream[:at] + "da"}, step{after: time.Hour}))
					s := newDifySet(t, a)
					start := time.Now()
					o := askDify(t.Context(), s, Request{})
					took := time.Since(start)
					s.Close()
					switch {
					case at >= whole:
						require.NoError(t, o.err)
						require.LessOrEqual(t, took, tail)
						require.Empty(t, a.requests("/stop"))
					case at >= broken:
						require.Equal(t, KindServer, o.kind())
						require.Equal(t, tail, took)
						require.Empty(t, a.requests("/stop"))
					case at == 0:
						require.Equal(t, KindTimeout, o.kind())
						require.Equal(t, defaultFirstToken, took)
						require.Empty(t, a.requests("/stop"))
					default:
						require.Equal(t, KindIdle, o.kind())
						require.Equal(t, defaultIdle, took)
						require.Len(t, a.requests("/stop"), 1)
					}
				})
			}
		})
	}
}

// The keep-alive is a sign of life of the connection, once the app has shown one of its own.
func TestDify_pings_keepASlowAnswerAlive(t *testing.T) {
	stream := difyRecorded(t)["chatflow"]
	first := strings.Index(stream, "\n\n") + 2
	ping := step{after: 10 * time.Second, text: "event: ping\n\n"}
	synctest.Test(t, func(t *testing.T) {
		steps := []step{{text: stream[:first]}}
		for range 60 {
			steps = append(steps, ping)
		}
		a := newDifyApp(difySteps(append(steps, step{text: stream[first:]})...))
		difyShapes["chatflow"].check(t, askDify(t.Context(), newDifySet(t, a), Request{}))

		steps = nil
		for range 60 {
			steps = append(steps, ping)
		}
		o := askDify(t.Context(), newDifySet(t, newDifyApp(difySteps(steps...))), Request{})
		require.Equal(t, KindTimeout, o.kind(), "but not one of the app")
		o = askDify(t.Context(), newDifySet(t, newDifyApp(difySteps(append(append([]step{{text: stream[:first]}}, steps...), steps...)...))), Request{})
		require.Equal(t, KindTimeout, o.kind(), "and not without end")
		require.Equal(t, defaultTotal, o.Duration)
	})
}

// Promise 29, issue 4 item 3: a cancel at any moment closes the connection at once, and has the run stopped once, under the
// same user, if it is known and not over. Stream does not wait for that; the set's Close does.
func TestDify_cancelled_stopsTheRunOnce(t *testing.T) {
	recorded := difyRecorded(t)
	var names []string
	for name, w := range difyShapes {
		if w.kind == "" {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	rapid.Check(t, func(rt *rapid.T) {
		name := rapid.SampledFrom(names).Draw(rt, "stream")
		var steps []step
		whole, known, clock := time.Duration(0), time.Duration(-1), time.Duration(0)
		stream := recorded[name]
		end := difyUntil(stream, cmp.Or(difyShapes[name].end, "message_end"))
		for at := 0; at < len(stream); {
			n := strings.Index(stream[at:], "\n\n") + 2
			wait := time.Duration(rapid.IntRange(1, 900).Draw(rt, "ms")) * time.Millisecond
			clock += wait
			steps = append(steps, step{after: wait, text: stream[at : at+n]})
			if at += n; known < 0 {
				known = clock
			}
			if at == end {
				whole = clock
			}
		}
		after := time.Duration(rapid.IntRange(0, int(clock/time.Millisecond)).Draw(rt, "cancel"))*time.Millisecond + time.Microsecond
		a := newDifyApp(difySteps(steps...))
		a.stopped = func(r *http.Request) { sleep(r.Context(), time.Hour) } // it never answers
		p, err := newDify(Config{ID: "m", Type: TypeDify, Endpoint: "http://llm.test/v1", APIKey: testKey}, a)
		require.NoError(rt, err)
		var o difySeen
		var took, closed time.Duration
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), after)
			defer cancel()
			start := time.Now()
			o.Result, o.err = p.Stream(ctx, Request{User: difyAsker, Messages: []Message{{Role: RoleUser, Content: "hi"}}}, func(d Delta) error {
				o.parts = append(o.parts, d.Text)
				return nil
			})
			took = time.Since(start)
			p.close()
			closed = time.Since(start)
		})
		if after >= whole {
			require.NoError(rt, o.err)
			require.Empty(rt, a.requests("/stop"))
			return
		}
		require.Equal(rt, KindCancelled, o.kind())
		require.Equal(rt, after, took, "Stream does not wait")
		if after < known {
			require.Empty(rt, a.requests("/stop"))
			require.Empty(rt, o.parts)
			return
		}
		if len(a.requests("/stop")) == 0 {
			require.Equal(rt, "chatflow-moderated", name, "only here a run is over before its answer is complete")
			return
		}
		require.Equal(rt, after+stopLimit, closed, "close waits for what it owns, to a limit")
		require.Equal(rt, difyConversation, o.Conversation)
		stops := a.requests("/stop")
		require.Len(rt, stops, 1)
		require.Equal(rt, difyAsker, stops[0].user)
		require.Equal(rt, "Bearer "+testKey, stops[0].key)
	})
}

// Issue 4, item 3: the connection is closed within 100 ms of a cancel, over TCP.
func TestDify_cancelled_closesItsConnectionAtOnce(t *testing.T) {
	gone, stopped := make(chan time.Time, 1), make(chan string, 2)
	first := strings.SplitAfter(difyRecorded(t)["chatflow"], "\n\n")[0]
	base := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, "/stop") {
			body, _ := io.ReadAll(r.Body)
			stopped <- string(body)
			return
		}
		_, _ = io.Copy(io.Discard, r.Body)
		w.Header().Set("Content-Type", "text/event-stream")
		_, _ = io.WriteString(w, first+difyText("Hello"))
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
		gone <- time.Now()
	}))
	s := newDifySet(t, nil, func(c *Config) { c.Endpoint = base + "/v1" })
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var at time.Time
	_, err := s.Stream(ctx, Request{User: difyAsker, Messages: []Message{{Role: RoleUser, Content: "hi"}}}, Observer{}, func(Delta) error {
		at = time.Now()
		cancel()
		return nil
	})
	require.Equal(t, KindCancelled, KindOf(err))
	require.Less(t, time.Since(at), 100*time.Millisecond)
	require.Less(t, (<-gone).Sub(at), 100*time.Millisecond)
	s.Close()
	require.JSONEq(t, `{"user":"user-1"}`, <-stopped)
	require.Empty(t, stopped)
}

func difyText(text string) string {
	return fmt.Sprintf(`data: {"event": "message", "task_id": %q, "conversation_id": %q, "answer": %q}`+"\n\n", difyTask, difyConversation, text)
}

// Whoever leaves a run leaves it stopped: a receiver that fails, an answer that is too long in time, one that cannot be read.
func TestDify_leftBeforeItsEnd_stopsTheRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newDifyApp(difyAnswer(200, difyText("Hello")+difyText(" world")))
		s := newDifySet(t, a)
		_, err := s.Stream(t.Context(), Request{}, Observer{}, func(Delta) error { return errTest })
		require.Equal(t, errTest, err, "unchanged")
		s.Close()
		require.Len(t, a.requests("/stop"), 1)
		require.Equal(t, anonymous, a.requests("/stop")[0].user, "Dify demands a user")
		require.Equal(t, anonymous, a.requests("/chat-messages")[0].user)

		o := askDify(t.Context(), s, Request{}) // after Close it still holds, and is waited for by Stream
		require.Equal(t, KindTruncated, o.kind())
		require.Len(t, a.requests("/stop"), 2)

		long := newDifyApp(difyAnswer(200, difyText("Hello")+"data: "+strings.Repeat("x", maxDifyEvent)+"\n\n"))
		s = newDifySet(t, long)
		o = askDify(t.Context(), s, Request{})
		require.Equal(t, KindServer, o.kind())
		s.Close()
		require.Len(t, long.requests("/stop"), 1)
	})
	over := newDifyApp(difyAnswer(200, difyText("Hel")+`data: {"event":"error","code":"completion_request_error","status":400}`+"\n\n"))
	s := newDifySet(t, over)
	require.Equal(t, KindServer, askDify(t.Context(), s, Request{}).kind())
	s.Close()
	require.Empty(t, over.requests("/stop"), "it is over")
}

// Apps that do not answer hold a shutdown up together, not one after the other.
func TestClose_waitsForAllAppsAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &Set{entries: map[string]*entry{"none": {}}}
		for _, id := range []string{"one", "two", "three"} {
			s.entries[id] = &entry{release: func() { time.Sleep(stopLimit) }}
		}
		begin := time.Now()
		s.Close()
		require.Equal(t, stopLimit, time.Since(begin))
	})
}

// An event may be long, to a limit.
func TestDify_longEvents_areRead(t *testing.T) {
	text := strings.Repeat("word ", 500_000)
	a := newDifyApp(difyAnswer(200, difyText(text)+`data: {"event":"message_end"}`+"\n\n"))
	o := askDify(t.Context(), newDifySet(t, a), Request{})
	require.NoError(t, o.err)
	require.Equal(t, text, o.text)
}
