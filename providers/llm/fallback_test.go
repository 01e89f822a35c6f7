package llm

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// providerFunc is a Provider made of a function.
type providerFunc func(ctx context.Context, req Request, emit func(Delta) error) (Result, error)

func (f providerFunc) Stream(ctx context.Context, req Request, emit func(Delta) error) (Result, error) {
	return f(ctx, req, emit)
}

// alwaysFails always fails in one way, after some text.
func alwaysFails(err error, texts ...string) Provider {
	return providerFunc(func(_ context.Context, _ Request, emit func(Delta) error) (Result, error) {
		for _, s := range texts {
			if err := emit(Delta{Text: s}); err != nil {
				return Result{}, err
			}
		}
		return Result{Usage: Usage{In: 1, Total: 1}}, err
	})
}

// alwaysSays always answers.
func alwaysSays(text string) Provider {
	return providerFunc(func(_ context.Context, _ Request, emit func(Delta) error) (Result, error) {
		return Result{Finish: FinishStop, Usage: Usage{In: 1, Out: 1, Total: 2}}, emit(Delta{Text: text})
	})
}

// chain is a set of which the first model falls back on the others: "a" on "b", "c" and so on.
func chain(o SetOptions, providers ...Provider) *Set {
	s := newSet(o)
	var others []string
	for i := range providers {
		others = append(others, string(rune('a'+i)))
	}
	for i, p := range providers {
		c := Config{ID: others[i], Type: TypeOpenAI, Endpoint: "http://" + others[i]}
		if i == 0 {
			c.Fallback = others[1:]
		}
		s.add(c, p, nil)
	}
	return s
}

// toldSteps is what an observer heard, as words.
type toldSteps struct{ words []string }

func (l *toldSteps) observer() Observer {
	add := func(format string, args ...any) { l.words = append(l.words, fmt.Sprintf(format, args...)) }
	return Observer{
		Attempt:  func(try int, err error) { add("try %d after %s", try, KindOf(err)) },
		Fallback: func(model string, err error) { add("%s after %s", model, KindOf(err)) },
		Book:     func(_ context.Context, model string) error { add("book %s", model); return nil },
	}
}

// Promise 29: which failures let another model answer: those that concern the model, not those that concern the question or
// the user's wish; and never after a visible piece.
func TestFallback_byKind(t *testing.T) {
	const thrice, once, never = 3, 1, 0
	for kind, tries := range map[Kind]int{KindAuth: once, KindPermission: once, KindNotFound: once, KindQuota: once, KindRate: thrice,
		KindOverloaded: thrice, KindServer: thrice, KindNetwork: thrice, KindTruncated: thrice, KindTimeout: once, KindIdle: once,
		KindInvalid: never, KindTooLarge: never, KindContextLength: never, KindContent: never, KindCancelled: never} {
		t.Run(string(kind), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := chain(SetOptions{}, alwaysFails(fails(kind)), alwaysSays("B"))
				o := ask(t.Context(), s, "hi")
				if tries == never {
					require.Equal(t, kind, o.kind(), "as it is")
					require.Equal(t, "a", o.Model)
					require.Equal(t, 1, o.Attempts)
					return
				}
				require.NoError(t, o.err)
				require.Equal(t, "B", o.text)
				require.Equal(t, "b", o.Model, "the model that answered")
				require.Equal(t, tries+1, o.Attempts)
				require.Equal(t, tries+1, o.books)
				require.EqualValues(t, tries+2, o.Usage.Total, "of all models")
			})
			synctest.Test(t, func(t *testing.T) {
				o := ask(t.Context(), chain(SetOptions{}, alwaysFails(fails(kind), "A"), alwaysSays("B")), "hi")
				require.Equal(t, kind, o.kind())
				require.Equal(t, "A", o.text)
				require.Equal(t, "a", o.Model)
				require.Equal(t, 1, o.Attempts)
			})
		})
	}
}

// Promise 29: a fallback is given what it can read, which is not what the model that failed can.
func TestFallback_isGivenWhatItCanRead(t *testing.T) {
	var given []string
	reads := func(err error) Provider {
		return providerFunc(func(_ context.Context, req Request, _ func(Delta) error) (Result, error) {
			given = append(given, fmt.Sprint(req.Model, " ", req.Messages[0].Content, " ", req.Conversations[req.Model].ID))
			return Result{Finish: FinishStop}, err
		})
	}
	s := chain(SetOptions{}, reads(fails(KindAuth)), reads(fails(KindQuota)), reads(nil))
	req := Request{Messages: []Message{{Role: RoleUser, Content: "long"}}}
	req.Fit = func(model string) ([]Message, map[string]Conversation) {
		return []Message{{Role: RoleUser, Content: "for " + model}}, map[string]Conversation{model: {ID: "c" + model}}
	}
	require.NoError(t, send(t.Context(), s, req).err)
	require.Equal(t, []string{"a long ", "b for b cb", "c for c cc"}, given)
}

// Promise 29: where something else answers in the provider's place, a gateway's page say, another model is asked.
func TestFallback_whenWhatComesIsNoAnswer(t *testing.T) {
	for name, answer := range map[string]http.RoundTripper{
		"a page":      always(200, "<html>We are back soon</html>", "Content-Type: text/html"),
		"a redirect":  always(308, "", "Location: http://elsewhere.test/"),
		"broken JSON": always(200, "data: {oops\n\n"),
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				for _, c := range []Config{{Type: TypeOpenAI}, {Type: TypeOpenAI, API: APIResponses}, {Type: TypeAnthropic}, {Type: TypeDify}} {
					c.ID, c.Model, c.APIKey, c.Endpoint = "a", "upstream", "k", "http://llm.test"
					p, release, err := newProvider(c, answer)
					require.NoError(t, err)
					s := chain(SetOptions{}, p, alwaysSays("B"))
					o := ask(t.Context(), s, "hi")
					require.NoError(t, o.err)
					require.Equal(t, "b", o.Model, "%s %s", c.Type, c.API)
					if release != nil {
						release()
					}
				}
			})
		})
	}
}

// Promise 29: each step is told before it is taken.
func TestFallback_inTheOrderOfTheList(t *testing.T) {
	tests := map[string]struct {
		providers []Provider
		told      string
		model     string
		err       Kind
	}{
		"the first that can": {[]Provider{alwaysFails(fails(KindAuth)), alwaysSays("B"), alwaysSays("C")},
			"book a, b after auth, book b", "b", ""},
		"one after the other": {[]Provider{alwaysFails(fails(KindAuth)), alwaysFails(fails(KindNotFound)), alwaysSays("C")},
			"book a, b after auth, book b, c after not_found, book c", "c", ""},
		"it is waited for one model only": {[]Provider{alwaysFails(fails(KindServer)), alwaysFails(fails(KindOverloaded)), alwaysSays("C")},
			"book a, try 2 after server, book a, try 3 after server, book a, b after server, book b, c after overloaded, book c", "c", ""},
		"for the first that may come back": {[]Provider{alwaysFails(fails(KindAuth)), alwaysFails(fails(KindOverloaded)), alwaysFails(fails(KindServer))},
			"book a, b after auth, book b, try 2 after overloaded, book b, try 3 after overloaded, book b, c after overloaded, book c", "c", KindServer},
		"nobody can": {[]Provider{alwaysFails(fails(KindAuth)), alwaysFails(fails(KindQuota))},
			"book a, b after auth, book b", "b", KindQuota},
		"another would be given the same conversation": {[]Provider{alwaysFails(fails(KindAuth)), alwaysFails(fails(KindContextLength)), alwaysSays("C")},
			"book a, b after auth, book b", "b", KindContextLength},
		"a long wait is not waited": {[]Provider{alwaysFails(&Error{Kind: KindRate, Retryable: true, RetryAfter: 9 * time.Second}), alwaysSays("B")},
			"book a, b after rate, book b", "b", ""},
		"a short one is": {[]Provider{alwaysFails(&Error{Kind: KindRate, Retryable: true, RetryAfter: 8 * time.Second}), alwaysSays("B")},
			"book a, try 2 after rate, book a, try 3 after rate, book a, b after rate, book b", "b", ""},
		"not again where the failure has stopped all": {[]Provider{alwaysFails(fails(KindServer)), alwaysFails(fails(KindAuth))},
			"book a, try 2 after server, book a, b after server, book b", "b", KindAuth},
		"without another it is waited as long as it may be": {[]Provider{alwaysFails(&Error{Kind: KindRate, Retryable: true, RetryAfter: 30 * time.Second})},
			"book a, try 2 after rate, book a, try 3 after rate, book a", "a", KindRate},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var l toldSteps
				o := SetOptions{}
				if strings.HasPrefix(name, "not again") {
					o.BreakerFailures = 2
				}
				res, err := chain(o, tt.providers...).Stream(t.Context(), Request{}, l.observer(), func(Delta) error { return nil })
				require.Equal(t, tt.told, strings.Join(l.words, ", "))
				require.Equal(t, tt.model, res.Model)
				require.Equal(t, tt.err, KindOf(err))
			})
		})
	}
}

// Promise 29: a user's stop is the end, also where it comes together with a failure.
func TestFallback_neverAfterACancel(t *testing.T) {
	for _, kind := range []Kind{KindAuth, KindServer, KindUnavailable} {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithCancelCause(t.Context())
			s := chain(SetOptions{}, providerFunc(func(context.Context, Request, func(Delta) error) (Result, error) {
				cancel(errTest)
				return Result{}, fails(kind)
			}), alwaysSays("B"))
			var l toldSteps
			_, err := s.Stream(ctx, Request{}, l.observer(), nil)
			require.Equal(t, KindCancelled, KindOf(err))
			require.ErrorIs(t, err, errTest)
			require.NotContains(t, l.words, "book b")
		})
	}
}

// course is what a request meets, drawn before it is sent: what rapid draws, and what fails, must be outside of a bubble.
type course struct {
	usage  Usage
	pieces []Delta
	err    error
	finish Finish
}

func drawCourse(rt *rapid.T) course {
	c := course{usage: Usage{In: int64(rapid.IntRange(0, 9).Draw(rt, "in")), Out: 1, Total: 2}}
	for range rapid.SampledFrom([]int{0, 0, 0, 1, 2}).Draw(rt, "pieces") {
		c.pieces = append(c.pieces, rapid.SampledFrom([]Delta{{Text: "x"}, {File: &File{}}, {Replace: true}}).Draw(rt, "piece"))
	}
	switch k := rapid.SampledFrom(append([]Kind{"", "caller"}, allKinds...)).Draw(rt, "ends"); k {
	case "":
		c.finish = rapid.SampledFrom([]Finish{FinishStop, FinishRefusal}).Draw(rt, "finish")
	case "caller":
		c.err = errTest
	default:
		c.err = &Error{Kind: k, Retryable: k.retryable(), RetryAfter: time.Duration(rapid.IntRange(0, 40).Draw(rt, "after")) * time.Second}
	}
	return c
}

// asked is a question and what came of it.
type asked struct {
	log   []string // "book a", "sent a", "piece"
	spent Usage
	res   Result
	err   error
}

// Promise 29: for any course of failures over any number of models: nothing is sent after a visible piece; each request was
// booked, for its own model, right before it left; attempts and usage are the sums of what left; whatever left is
// in the order of the list.
func TestFallback_forAnyCourseOfFailures(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		models := rapid.IntRange(1, 4).Draw(rt, "models")
		courses := rapid.SliceOfN(rapid.Custom(drawCourse), 60, 60).Draw(rt, "courses") // more than can be sent
		pauses := rapid.SliceOfN(rapid.IntRange(0, 60), 1, 5).Draw(rt, "pauses")
		unbookable := rapid.IntRange(1, 12).Draw(rt, "unbookable")
		o := SetOptions{FallbackOnRefusal: rapid.Bool().Draw(rt, "refusals"), BreakerFailures: rapid.IntRange(1, 6).Draw(rt, "failures"),
			RetryFloor: rapid.IntRange(-1, 3).Draw(rt, "floor")}

		var all []*asked
		var now *asked
		meet := providerFunc(func(_ context.Context, req Request, emit func(Delta) error) (Result, error) {
			c := courses[0]
			courses = courses[1:]
			now.log, now.spent = append(now.log, "sent "+req.Model), now.spent.Plus(c.usage)
			for _, d := range c.pieces {
				now.log = append(now.log, "piece")
				_ = emit(d)
			}
			return Result{Usage: c.usage, Finish: c.finish}, c.err
		})
		synctest.Test(t, func(t *testing.T) {
			s := chain(o, slices.Repeat([]Provider{meet}, models)...)
			for _, pause := range pauses {
				now = &asked{}
				all = append(all, now)
				booked := 0
				now.res, now.err = s.Stream(t.Context(), Request{}, Observer{Book: func(_ context.Context, model string) error {
					if booked++; booked == unbookable {
						return errTest
					}
					now.log = append(now.log, "book "+model)
					return nil
				}}, func(Delta) error { return nil })
				time.Sleep(time.Duration(pause) * time.Second)
			}
		})
		for _, q := range all {
			sent, last := 0, ""
			for i, w := range q.log {
				model, isSent := strings.CutPrefix(w, "sent ")
				if !isSent {
					continue
				}
				require.Equal(rt, "book "+model, q.log[i-1], "booked right before it left")
				require.NotContains(rt, q.log[:i], "piece", "nothing leaves after a visible piece")
				require.GreaterOrEqual(rt, model, last, "in the order of the list")
				sent, last = sent+1, model
			}
			require.Equal(rt, sent, q.res.Attempts)
			require.Equal(rt, q.spent, q.res.Usage)
			if q.err == nil {
				require.NotEmpty(rt, q.res.Finish)
			} else if slices.Contains(q.log, "piece") {
				require.Equal(rt, last, q.res.Model, "whoever has said it")
			}
		}
	})
}

// Promise 29: while a model is known to be down it costs no time, and nobody is told that it is asked.
func TestFallback_breakerOpen_asksTheNextAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := chain(SetOptions{}, alwaysFails(fails(KindServer)), alwaysFails(fails(KindAuth)), alwaysSays("C"))
		for range 2 {
			require.NoError(t, ask(t.Context(), s, "hi").err)
		}
		start := time.Now()
		var l toldSteps
		res, err := s.Stream(t.Context(), Request{}, l.observer(), func(Delta) error { return nil })
		require.NoError(t, err)
		require.Equal(t, []string{"c after unavailable", "book c"}, l.words)
		require.Equal(t, "c", res.Model)
		require.Zero(t, time.Since(start))

		o := send(t.Context(), s, Request{Model: "b"})
		require.Equal(t, KindUnavailable, o.kind(), "it has no fallback of its own")
		require.Zero(t, o.books)
		require.Zero(t, o.Attempts)
	})
}

// A fallback is given the same question, under its own id. An answer that was begun is only gone on with by those that can.
func TestFallback_isGivenTheSameQuestion(t *testing.T) {
	var got []Request
	note := providerFunc(func(_ context.Context, req Request, _ func(Delta) error) (Result, error) {
		got = append(got, req)
		return Result{}, fails(KindAuth)
	})
	set := func() *Set {
		s := newSet(SetOptions{})
		s.add(Config{ID: "a", Type: TypeOpenAI, Continue: ContinuePrefix, Fallback: []string{"b", "c"}}, note, nil)
		s.add(Config{ID: "b", Type: TypeOpenAI}, note, nil)
		s.add(Config{ID: "c", Type: TypeOpenAI, Continue: ContinuePrefix}, note, nil)
		return s
	}
	req := Request{Messages: []Message{{Role: RoleUser, Content: "look", Files: []File{{Name: "a.png"}}}}, User: "u", MaxOutput: 7,
		Conversations: map[string]Conversation{"b": {ID: "1"}}}
	require.Equal(t, KindAuth, send(t.Context(), set(), req).kind())
	require.Len(t, got, 3)
	for i, id := range []string{"a", "b", "c"} {
		want := req
		want.Model = id
		require.Equal(t, want, got[i])
	}

	got = nil
	send(t.Context(), set(), Request{Continue: true})
	require.Len(t, got, 2)
	require.Equal(t, []string{"a", "c"}, []string{got[0].Model, got[1].Model})
}

// A refusal is an answer, unless the settings say that another model may be asked.
func TestFallback_onRefusal(t *testing.T) {
	refusing := func(texts ...string) Provider {
		return providerFunc(func(_ context.Context, _ Request, emit func(Delta) error) (Result, error) {
			for _, s := range texts {
				_ = emit(Delta{Text: s})
			}
			return Result{Finish: FinishRefusal, Usage: Usage{In: 1, Total: 1}}, nil
		})
	}
	o := ask(t.Context(), chain(SetOptions{}, refusing(), alwaysSays("B")), "hi")
	require.NoError(t, o.err)
	require.Equal(t, "a", o.Model)
	yes := SetOptions{FallbackOnRefusal: true}
	o = ask(t.Context(), chain(yes, refusing(), alwaysSays("B")), "hi")
	require.Equal(t, "B", o.text)
	require.EqualValues(t, 3, o.Usage.Total)
	o = ask(t.Context(), chain(yes, refusing("I cannot"), alwaysSays("B")), "hi")
	require.Equal(t, "I cannot", o.text)
	require.Equal(t, FinishRefusal, o.Finish)
	o = ask(t.Context(), chain(yes, refusing(), alwaysFails(fails(KindAuth))), "hi")
	require.NoError(t, o.err, "the refusal stands")
	require.Equal(t, FinishRefusal, o.Finish)
	require.Equal(t, "a", o.Model)
	require.Equal(t, 2, o.Attempts)
	require.EqualValues(t, 2, o.Usage.Total)
}

// Promise 30: whoever answers, the next request goes to the model that was chosen.
func TestFallback_theChosenModelStaysChosen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		broken := true
		s := chain(SetOptions{}, providerFunc(func(_ context.Context, _ Request, emit func(Delta) error) (Result, error) {
			if broken {
				return Result{}, fails(KindAuth)
			}
			return Result{Finish: FinishStop}, emit(Delta{Text: "A"})
		}), alwaysSays("B"))
		require.Equal(t, "b", send(t.Context(), s, Request{Model: "a"}).Model)
		broken = false
		require.Equal(t, "b", send(t.Context(), s, Request{Model: "a"}).Model, "it still rests")
		time.Sleep(31 * time.Second)
		require.Equal(t, "a", send(t.Context(), s, Request{Model: "a"}).Model)
	})
}

func TestNewSet_checksFallbacksAndCapabilities(t *testing.T) {
	local := func(id string, change func(*Config)) Config {
		c := Config{ID: id, Type: TypeOpenAI, Endpoint: "http://llm.test"}
		change(&c)
		return c
	}
	_, err := NewSet(SetOptions{Providers: []Config{
		local("a", func(c *Config) { c.Fallback = []string{"b", "c", "b"} }),
		local("b", func(c *Config) { c.Fallback = []string{"b", "a"} }),
		local("d", func(c *Config) { c.API = "assistants" }),
		local("e", func(c *Config) { c.Hosts, c.Tools = []string{"x"}, []string{ToolWebSearch} }),
		local("f", func(c *Config) { c.Files = []string{".pdf", "PDF", "pdf"} }),
		local("g", func(c *Config) { c.Type, c.API = TypeAnthropic, APIResponses }),
		local("h", func(c *Config) { c.Type, c.Inputs = TypeAnthropic, map[string]string{"a": "b"} }),
	}})
	for _, want := range []string{`1 (a): fallback "c" is not the id of a model`, `1 (a): fallback names "b" twice`, "2 (b): fallback names the model itself",
		`3 (d): api "assistants" is unknown`, "4 (e): hosts and inputs are for type dify", "4 (e): tools are for api responses only", `5 (f): files: ".pdf"`, `5 (f): files: "PDF"`,
		"6 (g): api is for type openai only", "7 (h): hosts and inputs"} {
		require.ErrorContains(t, err, want)
	}
	require.Equal(t, 10, strings.Count(err.Error(), "llm provider "), err.Error())

	s := newTestSet(t, "http://llm.test", func(o *SetOptions) {
		c := &o.Providers[0]
		c.Vision, c.Audio, c.Files, c.Fallback = true, true, []string{"pdf"}, []string{"n"}
		o.Providers = append(o.Providers, local("n", func(c *Config) { c.Fallback = []string{"m"} })) // for each other
	})
	m := s.Models()[0]
	require.Equal(t, Model{ID: "m", Name: "Model", Provider: TypeOpenAI, Vision: true, Audio: true, Files: []string{"pdf"}}, m)
	m.Files[0] = "exe"
	require.Equal(t, "pdf", s.Models()[0].Files[0])
}
