package flush_test

import (
	"bytes"
	"context"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/real-rm/chatbox/sessionstore"
	"github.com/real-rm/chatbox/sessionstore/flush"
)

// gauge shows what the test sets.
type gauge struct {
	mu  sync.Mutex
	b   flush.Backlog
	err error
}

func (g *gauge) set(b flush.Backlog, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.b, g.err = b, err
}

func (g *gauge) Backlog(context.Context) (int64, time.Duration, int64, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.b.Entries, g.b.Oldest, g.b.Dead, g.err
}

func (g *gauge) MemoryUsed(context.Context) (float64, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.b.Memory, g.err
}

// An outage of any length is alarmed once at 30 s and once at 5 min, its end and the way there are told.
func TestWatch_alarmsOncePerOutageAndTellsProgress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var text bytes.Buffer
		g := &gauge{}
		m := newModel()
		f := newFlusher(t, m, flush.Options{Gauge: g, Log: slog.New(slog.NewJSONHandler(&text, nil))})
		show := func(entries int64, oldest time.Duration) {
			g.set(flush.Backlog{Entries: entries, Oldest: oldest}, nil)
			time.Sleep(5 * time.Second)
			synctest.Wait()
		}
		running(t, f, func() {
			show(10, 29*time.Second)
			require.Empty(t, text.String())
			require.Equal(t, flush.Backlog{Entries: 10, Oldest: 29 * time.Second}, f.Backlog())
			for range 3 {
				show(20, 31*time.Second)
			}
			require.Equal(t, 1, strings.Count(text.String(), `"level":"WARN"`), text.String())
			require.Contains(t, text.String(), "catching up with MongoDB", "MongoDB is there: progress is told")
			for range 3 {
				show(30, 301*time.Second)
			}
			require.Equal(t, 1, strings.Count(text.String(), `"level":"WARN"`))
			require.Equal(t, 1, strings.Count(text.String(), `"level":"ERROR"`))
			require.Contains(t, text.String(), `"oldest_s":301`)

			g.set(flush.Backlog{}, sessionstore.ErrAway)
			time.Sleep(10 * time.Second)
			synctest.Wait()
			require.EqualValues(t, 30, f.Backlog().Entries, "what is not known does not become zero")
			show(0, 0)
			require.Equal(t, 1, strings.Count(text.String(), "do not wait for MongoDB any more"))
			show(20, 31*time.Second)
			require.Equal(t, 2, strings.Count(text.String(), `"level":"WARN"`), "the next outage is another one")
		})
	})
}

func TestCrowded_onlyWhileMongoDBTakesNothingAndRedisFillsUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := &gauge{}
		m := newModel()
		f := newFlusher(t, m, flush.Options{Gauge: g})
		running(t, f, func() {
			for _, c := range []struct {
				b    flush.Backlog
				want bool
			}{
				{flush.Backlog{Memory: 0.9}, false},
				{flush.Backlog{Memory: 0.59, Oldest: time.Hour}, false},
				{flush.Backlog{Memory: 0.61, Oldest: 59 * time.Second}, false},
				{flush.Backlog{Memory: 0.61, Oldest: time.Minute}, true},
				{flush.Backlog{Memory: 0, Oldest: time.Hour}, false},
			} {
				g.set(c.b, nil)
				time.Sleep(3 * time.Second)
				synctest.Wait()
				require.Equal(t, c.want, f.Crowded(), "%+v", c.b)
			}
		})
	})
}
