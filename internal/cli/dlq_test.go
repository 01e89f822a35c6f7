package cli_test

import (
	"bytes"
	"context"
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/real-rm/chatbox/internal/cli"
	"github.com/real-rm/chatbox/server/config"
)

// box is dead letters in memory.
type box struct {
	letters []cli.Letter
	done    []string // what was done to which
	closed  int
	err     error
}

func (b *box) Each(_ context.Context, partition int, f func(cli.Letter)) error {
	for _, l := range b.letters {
		if partition < 0 || partition == l.Partition {
			f(l)
		}
	}
	return b.err
}

func (b *box) Retry(_ context.Context, _ int, id string) (bool, error) {
	b.done = append(b.done, "retry "+id)
	return id != "3-0", nil // somebody else was faster
}

func (b *box) Drop(_ context.Context, _ int, id string) (bool, error) {
	b.done = append(b.done, "drop "+id)
	return true, nil
}

func (b *box) Close() error { b.closed++; return nil }

func newBox() *box {
	at := time.Date(2026, 11, 23, 8, 0, 0, 0, time.UTC)
	return &box{letters: []cli.Letter{
		{Partition: 1, ID: "1-0", Aside: at, Accepted: at.Add(-time.Second), SessionID: "p01-a", Seq: 7, Type: "user_message", Bytes: 9, Reason: "too large"},
		{Partition: 1, ID: "2-0", Aside: at, SessionID: "p01-b\x1b[31m", Reason: "header cannot be read"},
		{Partition: 2, ID: "3-0", Aside: at, SessionID: "p02-c", Seq: 1, Type: "ai_response", Bytes: 1, Reason: "too large"},
	}}
}

func dlq(t *testing.T, b *box, args ...string) result {
	t.Helper()
	var r result
	var out, errs bytes.Buffer
	r.code = cli.Run(t.Context(), cli.Options{
		Args: append([]string{"dlq", args[0], "--config", settingsFile(t)}, args[1:]...), Stdout: &out, Stderr: &errs,
		Letters: func(*config.Settings) (cli.Letters, error) { return b, nil },
	})
	r.out, r.err = out.String(), errs.String()
	return r
}

func TestDLQ_listShowsWhatWhereWhenAndWhy(t *testing.T) {
	b := newBox()
	r := dlq(t, b, "list")
	require.Equal(t, 0, r.code, r.err)
	for _, want := range []string{"1/1-0", "1/2-0", "2/3-0", "p01-a", "2026-11-23T08:00:00Z", "2026-11-23T07:59:59Z", "user_message", "too large", "header cannot be read"} {
		assert.Contains(t, r.out, want)
	}
	assert.NotContains(t, r.out, "\x1b", "a broken entry writes nothing to the terminal")
	assert.Empty(t, b.done)
	assert.Equal(t, 1, b.closed)

	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"--partition", "2"}, "2/3-0"}, {[]string{"--session", "p01-a"}, "1/1-0"}, {[]string{"--id", "1/2-0"}, "1/2-0"}, {[]string{"--id", "3-0"}, "2/3-0"},
	} {
		r := dlq(t, newBox(), append([]string{"list"}, c.args...)...)
		assert.Equal(t, 2, bytes.Count([]byte(r.out), []byte("\n")), "%v: a heading and one letter", c.args)
		assert.Contains(t, r.out, c.want)
	}
}

func TestDLQ_retryPutsBackWhatMatchesAndLogsIt(t *testing.T) {
	b := newBox()
	r := dlq(t, b, "retry")
	require.Equal(t, 0, r.code, r.err)
	assert.Equal(t, []string{"retry 1-0", "retry 2-0", "retry 3-0"}, b.done)
	assert.Contains(t, r.out, "2 put back")
	assert.Contains(t, r.err, `"session_id":"p01-a"`)
	assert.NotContains(t, r.err, "p02-c", "what somebody else did is not logged as done")
}

func TestDLQ_dropNeedsYesAndIsLogged(t *testing.T) {
	b := newBox()
	r := dlq(t, b, "drop", "--id", "1/1-0")
	assert.Equal(t, 1, r.code)
	assert.Contains(t, r.err, "--yes")
	assert.Empty(t, b.done)
	r = dlq(t, b, "drop", "--id", "1/1-0", "--yes")
	require.Equal(t, 0, r.code, r.err)
	assert.Equal(t, []string{"drop 1-0"}, b.done)
	assert.Contains(t, r.err, "dropped for good")
	assert.Contains(t, r.err, `"letter":"1/1-0"`)
}

func TestDLQ_saysWhatWentWrong(t *testing.T) {
	b := newBox()
	b.err = errors.New("redis is away")
	r := dlq(t, b, "retry")
	assert.Equal(t, 1, r.code)
	assert.Contains(t, r.err, "redis is away")
	assert.Empty(t, b.done, "half of a list is not acted on")
	assert.Equal(t, 1, b.closed)
	assert.Equal(t, 1, dlq(t, newBox(), "list", "--id", "x/1-0").code)
	assert.Equal(t, 1, dlq(t, newBox(), "list", "--id", "1/1-0", "--partition", "2").code)
	r = chatbox(t, nil, "dlq", "list")
	assert.Equal(t, 1, r.code)
}
