package files

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// shelf is a store in memory.
type shelf struct {
	kept   []string // "session name mime content"
	refuse error
	blind  bool // it stores what it has even if reading failed
}

func (s *shelf) Keep(_ context.Context, sessionID, name, mime string, r io.Reader) (string, error) {
	if s.refuse != nil {
		return "", s.refuse
	}
	b, err := io.ReadAll(r)
	if err != nil && !s.blind {
		return "", err
	}
	s.kept = append(s.kept, strings.Join([]string{sessionID, name, mime, string(b)}, " "))
	return fmt.Sprintf("id-%d", len(s.kept)), nil
}

// bytesOf opens a text, as a provider opens a file.
func bytesOf(text string) func(context.Context) (io.ReadCloser, error) {
	return func(context.Context) (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(text)), nil }
}

// broken opens a file that breaks after some bytes.
func broken(text string) func(context.Context) (io.ReadCloser, error) {
	return func(context.Context) (io.ReadCloser, error) {
		return io.NopCloser(io.MultiReader(strings.NewReader(text), errReader{})), nil
	}
}

var errBroken = errors.New("the connection broke")

type errReader struct{}

func (errReader) Read([]byte) (int, error) { return 0, errBroken }

func newTestIntake(t *testing.T, o IntakeOptions) *Intake {
	t.Helper()
	in, err := NewIntake(o)
	require.NoError(t, err)
	return in
}

// Feature: chat-application-websocket, Property 24 (Promise 24): a file made by the model is stored, and the answer
// carries its id.
func TestTake_ofBytes_givesThemToTheStore(t *testing.T) {
	store := &shelf{}
	in := newTestIntake(t, IntakeOptions{Store: store})
	got, err := in.Take(t.Context(), "s1", []Made{
		{Name: "../plot.png", MIME: "text/html", Open: bytesOf(png)},
		{MIME: "image/png", URL: "https://files.example.com/signed?x=1", Open: bytesOf("<html><script>1</script></html>")},
	})
	require.NoError(t, err)
	assert.Equal(t, Taken{FileIDs: []string{"id-1", "id-2"}}, got)
	assert.Equal(t, []string{"s1 plot.png image/png " + png, "s1 file.html text/html; charset=utf-8 <html><script>1</script></html>"}, store.kept)
}

// Feature: chat-application-websocket, Property 24 (Promise 24): or its external address is passed on.
func TestTake_ofAnAddress_passesItOn(t *testing.T) {
	for _, in := range []*Intake{newTestIntake(t, IntakeOptions{Store: &shelf{}}), newTestIntake(t, IntakeOptions{})} {
		got, err := in.Take(t.Context(), "s1", []Made{{Name: "a\u202eb.png", MIME: "image/png; x=1", URL: "https://Files.example.com:443/a?b#c"}, {URL: "https://example.com/dir/plot.pdf"}})
		require.NoError(t, err)
		want := []Link{{Name: "ab.png", MIME: "image/png", URL: "https://files.example.com/a?b"}, {Name: "plot.pdf", URL: "https://example.com/dir/plot.pdf"}}
		assert.Equal(t, Taken{Links: want}, got)
	}
}

func TestTake_ofAnAddressThatIsNone_isAnError(t *testing.T) {
	in := newTestIntake(t, IntakeOptions{Store: &shelf{}})
	for _, address := range append([]string{"http://example.com/x", "javascript:alert(1)", "https://u:s3cr3t@example.com", "data:text/html,s3cr3t", "https://example.com:8443/"}, "https://169.254.169.254/latest", "https://[::ffff:7f00:1]/", "https://redis/") {
		got, err := in.Take(t.Context(), "s1", []Made{{URL: address}})
		require.Error(t, err, address)
		assert.NotContains(t, err.Error(), "s3cr3t")
		assert.Empty(t, got)
	}
}

func TestTake_withPolicyDrop_leavesAddressesOut(t *testing.T) {
	store := &shelf{}
	in := newTestIntake(t, IntakeOptions{Store: store, Policy: PolicyDrop})
	got, err := in.Take(t.Context(), "s1", []Made{{URL: "https://example.com/x"}, {Open: bytesOf("hi"), URL: "https://example.com/y"}, {Open: broken("hi"), URL: "https://example.com/z"}})
	require.ErrorIs(t, err, errBroken)
	assert.Equal(t, Taken{FileIDs: []string{"id-1"}, Dropped: 1}, got)
}

func TestTake_withPolicyFetch_storesWhatIsThere(t *testing.T) {
	s := newSite(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/gone" {
			w.WriteHeader(http.StatusGone)
			return
		}
		_, _ = io.WriteString(w, png)
	}))
	store := &shelf{}
	in := newTestIntake(t, IntakeOptions{Store: store, Policy: PolicyFetch, Fetcher: s.fetcher})
	got, err := in.Take(t.Context(), "s1", []Made{{URL: s.url("/cat.png")}, {Name: "dog.png", URL: s.url("/x")}})
	require.NoError(t, err)
	assert.Equal(t, []string{"id-1", "id-2"}, got.FileIDs)
	assert.Equal(t, []string{"s1 cat.png image/png " + png, "s1 dog.png image/png " + png}, store.kept)
}

func TestTake_ofWhatCannotBeKept_passesALinkOnUnlessSomebodyObjected(t *testing.T) {
	s := newSite(t, http.NotFoundHandler(), func(o *FetcherOptions) { o.Ports = append(o.Ports, 443) })
	const there = "https://example.com/x" // on a port that nothing listens on here
	errVirus := errors.New("a virus")
	link := []Link{{Name: "x", URL: there}}
	for name, c := range map[string]struct {
		store Store
		made  Made
		want  Taken
		err   error
		lost  bool
	}{
		"no store":                     {made: Made{Open: bytesOf("hi"), URL: there}, want: Taken{Links: link}},
		"no store, no address":         {made: Made{Open: bytesOf("hi")}, err: ErrNoStore},
		"no store, private address":    {made: Made{Open: bytesOf("hi"), URL: "https://dify/x"}, err: ErrNoStore},
		"the provider fails":           {store: &shelf{}, made: Made{Open: broken("hi"), URL: there}, want: Taken{Links: link}},
		"the provider fails, blind":    {store: &shelf{blind: true}, made: Made{Open: broken("hi")}, err: errBroken},
		"too large":                    {store: &shelf{}, made: Made{Open: bytesOf(strings.Repeat("x", 5000)), URL: there}, want: Taken{Links: link}},
		"too large, no address":        {store: &shelf{}, made: Made{Open: bytesOf(strings.Repeat("x", 5000))}, err: ErrTooLarge},
		"as large as allowed":          {store: &shelf{}, made: Made{Open: bytesOf(strings.Repeat("x", 4096))}, want: Taken{FileIDs: []string{"id-1"}}},
		"the store refuses":            {store: &shelf{refuse: errVirus}, made: Made{Open: bytesOf("hi"), URL: there}, err: errVirus},
		"the server is not there":      {store: &shelf{}, made: Made{URL: there}, want: Taken{Links: link}},
		"the guard refuses":            {store: &shelf{}, made: Made{URL: "https://127.0.0.1/x"}, lost: true},
		"empty":                        {store: &shelf{}, made: Made{Open: bytesOf("")}, lost: true},
		"nothing":                      {store: &shelf{}, lost: true},
		"an address without a store":   {made: Made{URL: there}, want: Taken{Links: link}},
		"a private one without a host": {made: Made{URL: "https:///x"}, lost: true},
	} {
		t.Run(name, func(t *testing.T) {
			in := newTestIntake(t, IntakeOptions{Store: c.store, Policy: PolicyFetch, Fetcher: s.fetcher, MaxBytes: 4096})
			got, err := in.Take(t.Context(), "s1", []Made{c.made})
			assert.Equal(t, c.want, got)
			assert.Equal(t, c.lost || c.err != nil, err != nil, "%v", err)
			if c.err != nil {
				assert.ErrorIs(t, err, c.err)
			}
		})
	}
	s.untouched(t)
}

func TestTake_ofAFileThatFails_takesTheOthers(t *testing.T) {
	var log bytes.Buffer
	in := newTestIntake(t, IntakeOptions{Store: &shelf{}, MaxFiles: 3, Log: slog.New(slog.NewTextHandler(&log, nil))})
	got, err := in.Take(t.Context(), "s1", []Made{{Open: broken("content-1")}, {Name: "name-2", Open: bytesOf("content-2")}, {URL: "https://example.com/path-3"}, {Open: bytesOf("four")}, {}})
	require.ErrorIs(t, err, errBroken)
	require.ErrorContains(t, err, "2 of 5 are too many")
	assert.Equal(t, Taken{FileIDs: []string{"id-1"}, Links: []Link{{Name: "path-3", URL: "https://example.com/path-3"}}}, got)
	for _, s := range []string{"content-1", "content-2", "name-2", "path-3"} {
		assert.NotContains(t, log.String(), s)
	}
	assert.Contains(t, log.String(), "kept=1 links=1 dropped=0 lost=2")
}

func TestTake_hasOneLimitInTimeForAll(t *testing.T) {
	in := newTestIntake(t, IntakeOptions{Store: &shelf{}, Timeout: time.Nanosecond})
	wait := func(ctx context.Context) (io.ReadCloser, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	got, err := in.Take(t.Context(), "s1", []Made{{Open: wait}, {Open: wait}})
	require.ErrorIs(t, err, context.DeadlineExceeded)
	assert.Empty(t, got)
}

func TestNewIntake_withWrongOptions_saysAll(t *testing.T) {
	_, err := NewIntake(IntakeOptions{Policy: "maybe", MaxBytes: -1})
	require.ErrorContains(t, err, `"maybe"`)
	require.ErrorContains(t, err, "negative")
	_, err = NewIntake(IntakeOptions{Policy: PolicyFetch})
	require.ErrorContains(t, err, "needs a fetcher")
}

// Feature: chat-application-websocket, Property 24 (Promise 24), for any files of an answer: each is kept, passed on,
// left out by policy, or named in the error; in their order; and no link is shown that the guard would not reach.
func TestTake_ofAnyFiles_losesNoneInSilence(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		store := &shelf{}
		in, err := NewIntake(IntakeOptions{Store: store, MaxBytes: 100, Policy: rapid.SampledFrom([]string{"", PolicyLink, PolicyDrop}).Draw(t, "policy")})
		require.NoError(t, err)
		made := rapid.SliceOfN(rapid.Custom(someFile), 0, 10).Draw(t, "files")
		got, err := in.Take(context.Background(), "s", made)
		lost := 0
		if err != nil {
			lost = strings.Count(err.Error(), "take in file ")
		}
		require.Equal(t, len(made), len(got.FileIDs)+len(got.Links)+got.Dropped+lost, "%v", err)
		require.Equal(t, len(store.kept), len(got.FileIDs))
		for i, id := range got.FileIDs {
			require.Equal(t, fmt.Sprintf("id-%d", i+1), id)
		}
		for _, l := range got.Links {
			require.True(t, in.guard.acceptable(t, l.URL))
			require.NotEmpty(t, l.Name)
		}
	})
}

func someFile(t *rapid.T) Made {
	m := Made{Name: rapid.String().Draw(t, "name"), MIME: rapid.String().Draw(t, "type")}
	if rapid.Bool().Draw(t, "has address") {
		m.URL = rapid.Custom(someAddress).Draw(t, "address")
	}
	if rapid.Bool().Draw(t, "has bytes") {
		m.Open = bytesOf(rapid.StringN(0, -1, 200).Draw(t, "bytes"))
		if rapid.IntRange(0, 5).Draw(t, "breaks") == 0 {
			m.Open = broken("x")
		}
	}
	return m
}
