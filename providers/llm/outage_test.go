package llm

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

// Beyond F24: with every provider down there is a typed error at once, which says when to come back, one alert for each model,
// and nothing left behind.
func TestEveryProviderDown_typedErrorAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var alerts []Alert
		s := chain(SetOptions{Alert: func(a Alert) { alerts = append(alerts, a) }}, alwaysFails(fails(KindOverloaded)), alwaysFails(fails(KindNetwork)))
		for range 3 {
			require.Error(t, ask(t.Context(), s, "hi").err)
		}
		require.Len(t, alerts, 2)
		start, before := time.Now(), runtime.NumGoroutine()
		for range 1000 {
			o := ask(t.Context(), s, "hi")
			require.Equal(t, KindUnavailable, o.kind())
			var e *Error
			require.ErrorAs(t, o.err, &e)
			require.Positive(t, e.RetryAfter)
			require.LessOrEqual(t, e.RetryAfter, 31*time.Second)
			require.Zero(t, o.books, "nothing leaves")
		}
		require.Zero(t, time.Since(start))
		require.LessOrEqual(t, runtime.NumGoroutine(), before)
		require.Len(t, alerts, 2)
	})
}

// Beyond F24: also the first who meet the outage, before any breaker is open, wait for less than 2 s, over however many
// models.
func TestEveryProviderDown_firstToMeetItWaitLessThanTwoSeconds(t *testing.T) {
	for models := range 4 {
		synctest.Test(t, func(t *testing.T) {
			s := chain(SetOptions{}, slices.Repeat([]Provider{alwaysFails(fails(KindNetwork))}, models+1)...)
			start := time.Now()
			o := ask(t.Context(), s, "hi")
			require.Equal(t, KindNetwork, o.kind())
			require.Equal(t, defaultAttempts+models, o.Attempts)
			require.Less(t, time.Since(start), 2*time.Second)
		})
	}
}

// The same over the network, while the servers refuse and while nobody listens.
func TestEveryProviderDown_overTheNetwork(t *testing.T) {
	_, refusing := newFake(t, once)
	gone := listen(t)
	require.NoError(t, gone.Close())
	for name, s := range map[string]*Set{"refusing": refusing, "gone": newTestSet(t, "http://"+gone.Addr().String(), once)} {
		t.Run(name, func(t *testing.T) {
			for range defaultFailures {
				require.Contains(t, []Kind{KindOverloaded, KindNetwork}, ask(t.Context(), s, "!error 503").kind())
			}
			before := goleak.IgnoreCurrent()
			var wg sync.WaitGroup
			for range 200 {
				wg.Go(func() {
					start := time.Now()
					require.Equal(t, KindUnavailable, ask(t.Context(), s, "!error 503").kind())
					require.Less(t, time.Since(start), 2*time.Second)
				})
			}
			wg.Wait()
			goleak.VerifyNone(t, before) // which waits for those that are on their way out
		})
	}
}

// Beyond F24: one alert per outage and model, however many requests find out, and another only after the model has
// answered in between.
func TestAlert_oncePerOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		var alerts []Alert
		s := newSet(SetOptions{Alert: func(a Alert) {
			mu.Lock()
			defer mu.Unlock()
			alerts = append(alerts, a)
		}})
		var kind Kind
		s.add(Config{ID: "m", Type: TypeOpenAI}, providerFunc(func(_ context.Context, _ Request, emit func(Delta) error) (Result, error) {
			time.Sleep(time.Second)
			if kind != "" {
				return Result{}, fails(kind)
			}
			return Result{Finish: FinishStop}, emit(Delta{Text: "a"})
		}), nil)
		crowd := func() {
			var wg sync.WaitGroup
			for range 50 {
				wg.Go(func() { ask(t.Context(), s, "hi") })
			}
			wg.Wait()
		}
		crowd()
		require.Empty(t, alerts)

		begun := time.Now()
		kind = KindServer
		for range 20 { // it rests and fails again, several times
			crowd()
			time.Sleep(20 * time.Second)
		}
		require.Len(t, alerts, 1)
		require.Equal(t, "m", alerts[0].Model)
		require.Equal(t, KindServer, alerts[0].Kind)
		require.Equal(t, KindServer, KindOf(alerts[0].Err))
		require.Equal(t, begun.Add(time.Second), alerts[0].Since)

		time.Sleep(time.Minute)
		kind = ""
		require.NoError(t, ask(t.Context(), s, "hi").err)
		crowd()
		require.Len(t, alerts, 1)

		kind = KindQuota
		require.Equal(t, KindQuota, ask(t.Context(), s, "hi").kind())
		crowd()
		require.Len(t, alerts, 2)
		require.Equal(t, KindQuota, alerts[1].Kind)
	})
}

// Promise 29: a model that is out of credit is not asked again for it.
func TestQuota_isNeverRetried(t *testing.T) {
	f, s := newFake(t)
	require.Equal(t, KindQuota, ask(t.Context(), s, "!error 429 code=insufficient_quota").kind())
	require.Len(t, f.Requests(), 1)
	require.Equal(t, KindUnavailable, ask(t.Context(), s, "hi").kind())
	require.Len(t, f.Requests(), 1)
}

// A crowd whose provider fails does not send three times as much to it.
func TestRetryBudget_holdsForTheProvider(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSet(SetOptions{BreakerFailures: 1 << 30})
		sent := 0
		p := providerFunc(func(context.Context, Request, func(Delta) error) (Result, error) {
			sent++
			return Result{}, &Error{Kind: KindRate, Retryable: true}
		})
		s.add(Config{ID: "m", Type: TypeOpenAI, Endpoint: "http://one"}, p, nil)
		s.add(Config{ID: "n", Type: TypeOpenAI, Endpoint: "http://one"}, p, nil)
		for i := range 200 {
			o := send(t.Context(), s, Request{Model: []string{"m", "n"}[i%2]})
			require.Equal(t, KindRate, o.kind())
			if i >= 100 {
				time.Sleep(time.Millisecond)
			}
		}
		require.LessOrEqual(t, sent, 200+10+20)
		require.Greater(t, sent, 200)
	})
}

// Promise 37: a server that repeats the key wherever it can does not get it into an error or a line of the log.
func TestKeys_areNeverShown(t *testing.T) {
	for _, c := range []Config{{Type: TypeOpenAI}, {Type: TypeOpenAI, API: APIResponses}, {Type: TypeAnthropic}, {Type: TypeDify}} {
		t.Run(c.Type+c.API, func(t *testing.T) {
			c.ID, c.Model, c.APIKey, c.Endpoint = "m", "upstream-1", testKey, "https://llm.test/x?api-key=query-0123456789"
			c.Headers = map[string]string{"X-Gateway": "header-0123456789"}
			for i, body := range []string{`{"error":{"message":"KEY","type":"KEY","code":"KEY"}}`, `{"type":"error","error":{"type":"KEY","message":"KEY"},"request_id":"KEY"}`,
				`{"code":"KEY","message":"KEY","status":401}`, "KEY", "data: {\"error\":{\"code\":\"KEY\",\"message\":\"KEY\"}}\n\n",
				"event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"KEY\",\"message\":\"KEY\"}}\n\n",
				"data: {\"event\":\"error\",\"code\":\"KEY\",\"message\":\"KEY\",\"status\":400}\n\n", "data: KEY\n\n"} {
				for _, secret := range []string{testKey, "query-0123456789", "header-0123456789"} {
					for _, status := range []int{200, 307, 400, 401, 404, 429, 500} {
						var log strings.Builder
						var alerts []Alert
						body := strings.ReplaceAll(body, "KEY", secret)
						s, err := NewSet(SetOptions{Providers: []Config{c}, Attempts: 1, Log: textLog(&log), Alert: func(a Alert) { alerts = append(alerts, a) },
							BreakerFailures: 1, Transport: always(status, body, "Request-Id: "+secret, "X-Request-Id: "+secret, "Location: https://other.test/"+secret)})
						require.NoError(t, err)
						for range 2 {
							o := ask(t.Context(), s, "hi")
							require.Error(t, o.err)
							require.NotContains(t, fmt.Sprintf("%v %+v %q", o.err, o.Result, o.text), secret, "body %d status %d", i, status)
							for err := o.err; err != nil; err = errors.Unwrap(err) {
								require.NotContains(t, fmt.Sprintf("%+v", err), secret)
							}
						}
						require.NotContains(t, fmt.Sprintf("%+v", alerts), secret)
						require.NotContains(t, log.String(), secret, strconv.Itoa(status))
						s.Close()
					}
				}
			}
		})
	}
}
