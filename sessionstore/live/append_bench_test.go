package live

import (
	"fmt"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"
)

// BenchmarkAppend is one message from sealing to Redis' answer, over 64 sessions.
func BenchmarkAppend(b *testing.B) {
	s := newTestStore(b, nil)
	sids := benchSessions(b, s)
	text := strings.Repeat("x", 200)
	var n atomic.Int64
	b.SetParallelism(32)
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, err := s.Append(b.Context(), question(sids[n.Add(1)%64], text)); err != nil {
				b.Error(err)
				return
			}
		}
	})
}

// BenchmarkChunk is one chunk of an answer, in as many sessions as there are callers.
func BenchmarkChunk(b *testing.B) {
	s := newTestStore(b, nil)
	sids := benchSessions(b, s)
	var n atomic.Int64
	b.SetParallelism(32)
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		sid := sids[n.Add(1)-1]
		_, err := s.Append(b.Context(), question(sid, "q"))
		if err != nil {
			b.Error(err)
			return
		}
		g, err := s.Acquire(b.Context(), sid)
		if err != nil {
			b.Error(err)
			return
		}
		for i := 0; pb.Next(); i++ {
			if err := s.Chunk(b.Context(), &g, "some words of it ", i%500 == 499); err != nil {
				b.Error(err)
				return
			}
		}
	})
}

func benchSessions(b *testing.B, s *Store) []string {
	b.Helper()
	sids := make([]string, 64)
	for i := range sids {
		sids[i] = openSession(b, s, fmt.Sprintf("u%d", i))
	}
	require.Len(b, sids, 64)
	return sids
}
