package smoke

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// arrivals is a pair of the floor that was sent n messages and has received the given numbers.
func arrivals(n int64, numbers ...int64) counts {
	p := &pair{missing: map[int64]bool{}, sent: n, acks: n}
	for _, m := range numbers {
		p.number(m)
	}
	return (&fleet{pairs: []*pair{p}}).counts()
}

func TestCounts_tellLostDoubledAndUnorderedApart(t *testing.T) {
	for name, c := range map[string]struct {
		arrived []int64
		want    counts
	}{
		"all":               {[]int64{1, 2, 3, 4}, counts{sent: 4}},
		"none":              {nil, counts{sent: 4, lost: 4}},
		"one in the middle": {[]int64{1, 2, 4}, counts{sent: 4, lost: 1}},
		"the last":          {[]int64{1, 2, 3}, counts{sent: 4, lost: 1}},
		"doubled":           {[]int64{1, 2, 2, 3, 4}, counts{sent: 4, doubled: 1}},
		"late":              {[]int64{1, 3, 2, 4}, counts{sent: 4, unordered: 1}},
		"late and doubled":  {[]int64{1, 3, 2, 2, 4}, counts{sent: 4, unordered: 1, doubled: 1}},
	} {
		t.Run(name, func(t *testing.T) {
			got := arrivals(4, c.arrived...)
			assert.Equal(t, c.want, got)
			assert.Equal(t, len(c.arrived) != 4 || name == "late", got.bad())
		})
	}
}

func TestCounts_wantAnAckForEachMessage(t *testing.T) {
	p := &pair{missing: map[int64]bool{}, sent: 3, last: 3, acks: 2}
	assert.True(t, (&fleet{pairs: []*pair{p}}).counts().bad())
	p.acks = 4
	assert.Equal(t, counts{sent: 3, doubled: 1}, (&fleet{pairs: []*pair{p}}).counts())
}

func TestSender_takesItsOwnMessageForAFault(t *testing.T) {
	p := &pair{fleet: &fleet{sys: &system{product: true}}}
	p.sender([]byte(`{"type":"ack","message_id":"x","seq":1}`))
	assert.EqualValues(t, 1, p.acks)
	assert.Empty(t, p.faults)
	p.sender([]byte(`{"seq":2,"type":"user_message","content":"~1~5~"}`))
	p.sender([]byte(`{"type":"error","error":{"code":"RATE_LIMITED"}}`))
	p.sender([]byte(`{"type":"ack","message_id":"x","seq":1,"duplicate":true}`))
	assert.Len(t, p.faults, 3)
}

func TestMark_findsEveryNumberAndTime(t *testing.T) {
	b := appendMark(appendMark([]byte(`{"delta":"`), 1, 5), 2, time.Second)
	n, at, rest, ok := mark(append(b, `"}`...))
	require.True(t, ok)
	assert.EqualValues(t, 1, n)
	assert.Equal(t, 5*time.Nanosecond, at)
	n, at, rest, ok = mark(rest)
	require.True(t, ok)
	assert.EqualValues(t, 2, n)
	assert.Equal(t, time.Second, at)
	_, _, _, ok = mark(rest)
	assert.False(t, ok)
	for _, torn := range []string{"", "~", "~1", "~1~", "~1~2", "~x~2~", "~1~y~"} {
		_, _, _, ok := mark([]byte(torn))
		assert.False(t, ok, torn)
	}
}

// answerFrames are the frames of an answer whose chunks hold the given pieces.
func answerFrames(final int, chunks ...[]int) [][]byte {
	piece := func(n int) string { return fmt.Sprintf("~%d~0~", n) }
	var frames [][]byte
	for i, c := range chunks {
		var text strings.Builder
		for _, n := range c {
			text.WriteString(piece(n))
		}
		frames = append(frames, fmt.Appendf(nil, `{"type":"ai_response","chunk":%d,"delta":%q}`, i+1, text.String()))
	}
	var whole strings.Builder
	for n := range final {
		whole.WriteString(piece(n + 1))
	}
	return append(frames, fmt.Appendf(nil, `{"seq":3,"type":"ai_response","content":%q}`, whole.String()))
}

func TestStream_countsPiecesAndHoldsTheFinalToThem(t *testing.T) {
	take := func(frames [][]byte) (s stream) {
		for _, f := range frames {
			s.take(f, time.Millisecond)
		}
		return s
	}
	s := take(answerFrames(3, []int{1}, []int{2, 3})) // two pieces travelled together
	assert.EqualValues(t, 3, s.last)
	assert.EqualValues(t, 2, s.frames)
	assert.Zero(t, s.wrong)
	assert.True(t, s.done)
	assert.EqualValues(t, 3, s.final)
	assert.Len(t, s.latency, 3)
	assert.Equal(t, time.Millisecond, s.first)

	assert.EqualValues(t, 1, take(answerFrames(3, []int{1}, []int{3})).wrong)
	assert.EqualValues(t, 2, take(answerFrames(2, []int{1}, []int{2}, []int{3})).final)
}

func TestReport_judgesTheRatioOfTheRounds(t *testing.T) {
	r := &Report{}
	floor, ours := &system{}, &system{product: true}
	row := r.row(Row{Name: "cost", Unit: "µs", Target: 1.25})
	for i, v := range []float64{1, 100, 10} { // the machine was busy in one round, for both
		row.add(floor, v)
		row.add(ours, v*[]float64{1.2, 1.1, 1.3}[i])
	}
	assert.InDelta(t, 1.2, row.Ratio(), 1e-9)
	rate := r.row(Row{Name: "rate", Unit: "/s", Target: 0.8, More: true}, 100, 70)
	assert.InDelta(t, 0.7, rate.Ratio(), 1e-9)
	var out bytes.Buffer
	require.NoError(t, r.Print(&out))
	assert.Contains(t, out.String(), "at most 1.25x: ok")
	assert.Contains(t, out.String(), "at least 0.80x: MISSED")
}

func TestQuantile_isAValueThatWasMeasured(t *testing.T) {
	var d []time.Duration
	for i := range 100 {
		d = append(d, time.Duration(100-i)*time.Millisecond)
	}
	assert.InDelta(t, 51.0, quantile(d, 0.5), 1e-9)
	assert.InDelta(t, 100.0, quantile(d, 0.99), 1e-9)
	assert.Zero(t, quantile(nil, 0.5))
}
