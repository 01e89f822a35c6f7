package files

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"time"
)

// Policies for files that are behind an address which is not the provider's to open for us.
const (
	PolicyLink  = "link"  // the address is passed on, as a checked https link
	PolicyFetch = "fetch" // the file is fetched and kept; where that is impossible the link is passed on
	PolicyDrop  = "drop"  // the file is left out
)

// Defaults of IntakeOptions.
const (
	defaultIntakeBytes = 50 << 20
	defaultIntakeFiles = 16
	defaultIntakeTime  = 50 * time.Second // providers keep files open for a minute after the answer
)

// Store keeps files.
type Store interface {
	// Keep stores a file of a session and returns its id. mime is the type of its content. It must read r to its end,
	// and must not keep the file if r fails. What it refuses, a virus say, is an error.
	Keep(ctx context.Context, sessionID, name, mime string, r io.Reader) (fileID string, err error)
}

// Made is a file that a model has made. It has the fields of llm.File, so that one can be converted to the other.
type Made struct {
	Name string // may be empty
	MIME string // as announced; may be empty
	// URL is where the provider says that the file is. Empty: there is only Open.
	URL string
	// Open reads the file from the provider. nil: there is only URL.
	Open func(ctx context.Context) (io.ReadCloser, error)
}

// Link is a file that stays where it is. It is safe to show: an https address of the open internet, without a user.
type Link struct {
	Name string `json:"name"`
	MIME string `json:"mime,omitempty"` // as announced, unchecked
	URL  string `json:"url"`
}

// Taken is what became of the files of an answer, in their order.
type Taken struct {
	FileIDs []string
	Links   []Link
	Dropped int // left out by policy
}

// IntakeOptions tells what an Intake works with.
type IntakeOptions struct {
	// Store keeps the files. nil: nothing is kept, and files that have an address are handled as by PolicyLink.
	Store Store
	// Fetcher reads foreign files. Required with PolicyFetch.
	Fetcher *Fetcher
	// Policy for foreign files: PolicyLink, PolicyFetch or PolicyDrop. Empty: PolicyLink.
	Policy string
	// MaxBytes of a file that the provider opens for us. 0: 50 MiB. Foreign ones have the Fetcher's limit too.
	MaxBytes int64
	// MaxFiles of one answer; the rest is an error. 0: 16.
	MaxFiles int
	// Timeout for all files of one answer together. 0: 50 s.
	Timeout time.Duration
	// Log gets a line per file. nil: discarded.
	Log *slog.Logger
}

// Intake gives the files of answers to the store.
type Intake struct {
	o     IntakeOptions
	guard guard // for links
}

// ErrNoStore is the error of a file that cannot be kept because there is no store.
var ErrNoStore = errors.New("there is no store for files")

// NewIntake returns an Intake, or all that is wrong with its options.
func NewIntake(o IntakeOptions) (*Intake, error) {
	var problems []error
	switch o.Policy {
	case "":
		o.Policy = PolicyLink
	case PolicyLink, PolicyDrop:
	case PolicyFetch:
		if o.Fetcher == nil {
			problems = append(problems, errors.New("take in files: policy fetch needs a fetcher"))
		}
	default:
		problems = append(problems, fmt.Errorf("take in files: policy %q is not link, fetch or drop", o.Policy))
	}
	if o.MaxBytes < 0 || o.MaxFiles < 0 || o.Timeout < 0 {
		problems = append(problems, errors.New("take in files: limits must not be negative"))
	}
	if err := errors.Join(problems...); err != nil {
		return nil, err
	}
	if o.MaxBytes == 0 {
		o.MaxBytes = defaultIntakeBytes
	}
	if o.MaxFiles == 0 {
		o.MaxFiles = defaultIntakeFiles
	}
	if o.Timeout == 0 {
		o.Timeout = defaultIntakeTime
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return &Intake{o: o, guard: newGuard([]uint16{httpsPort}, nil)}, nil
}

// Take takes in the files of an answer, one after the other. The error joins those of the files that were lost; what is
// in Taken is good all the same, and an answer should be given with it.
func (in *Intake) Take(ctx context.Context, sessionID string, made []Made) (Taken, error) {
	ctx, cancel := context.WithTimeout(ctx, in.o.Timeout)
	defer cancel()
	var t Taken
	var problems []error
	for i, m := range made {
		if i == in.o.MaxFiles {
			problems = append(problems, fmt.Errorf("take in files: %d of %d are too many", len(made)-i, len(made)))
			break
		}
		if err := in.take(ctx, sessionID, m, &t); err != nil {
			problems = append(problems, fmt.Errorf("take in file %d: %w", i+1, err))
			in.o.Log.WarnContext(ctx, "file of an answer lost", "session_id", sessionID, "file", i+1, "error", err)
		}
	}
	if len(made) > 0 {
		in.o.Log.InfoContext(ctx, "files of an answer taken in", "session_id", sessionID, "files", len(made),
			"kept", len(t.FileIDs), "links", len(t.Links), "dropped", t.Dropped, "lost", len(problems))
	}
	return t, errors.Join(problems...)
}

// take adds one file to t.
func (in *Intake) take(ctx context.Context, sessionID string, m Made, t *Taken) error {
	var err error
	switch {
	case m.Open == nil && m.URL == "":
		return errors.New("neither bytes nor an address")
	case m.Open == nil && in.o.Policy == PolicyDrop:
		t.Dropped++
		return nil
	case m.Open == nil && (in.o.Policy == PolicyLink || in.o.Store == nil):
		return in.link(m, t)
	case in.o.Store == nil:
		err = ErrNoStore
	default:
		var id string
		if id, err = in.keep(ctx, sessionID, m); err == nil {
			t.FileIDs = append(t.FileIDs, id)
			return nil
		}
	}
	if m.URL == "" || in.o.Policy == PolicyDrop || !linkable(err) {
		return err
	}
	if lerr := in.link(m, t); lerr != nil {
		return err
	}
	return nil
}

// linkable says whether a file that could not be kept may still be passed on as a link: neither the store nor the
// guard had anything against it.
func linkable(err error) bool {
	var fe *FetchError
	var refusal *storeError
	return !errors.As(err, &refusal) && !(errors.As(err, &fe) && fe.Refused())
}

// link passes an address on.
func (in *Intake) link(m Made, t *Taken) error {
	u, err := in.guard.parse(m.URL)
	if err != nil {
		return err
	}
	name := m.Name
	if name == "" {
		name = u.Path
	}
	t.Links = append(t.Links, Link{Name: cleanName(name, m.MIME), MIME: cleanType(m.MIME), URL: u.String()})
	return nil
}

// storeError is a failure of the store itself.
type storeError struct{ err error }

func (e *storeError) Error() string { return "keep it: " + e.err.Error() }
func (e *storeError) Unwrap() error { return e.err }

// keep gives the bytes of a file to the store.
func (in *Intake) keep(ctx context.Context, sessionID string, m Made) (string, error) {
	body, name, err := in.open(ctx, m)
	if err != nil {
		return "", err
	}
	defer func() { _ = body.Close() }()
	limit := &capped{r: body, left: in.o.MaxBytes}
	r := bufio.NewReaderSize(limit, sniffed)
	typ, err := typeOf(r)
	if err != nil {
		return "", fmt.Errorf("read it: %w", err)
	}
	if _, err := r.Peek(1); err != nil {
		return "", errors.New("it is empty")
	}
	id, err := in.o.Store.Keep(ctx, sessionID, cleanName(name, typ), typ, r)
	switch {
	case limit.err != nil: // the store cannot know better
		return "", fmt.Errorf("read it: %w", limit.err)
	case err != nil:
		return "", &storeError{err}
	}
	return id, nil
}

// open begins to read a file, from its provider if that can open it, else from its address.
func (in *Intake) open(ctx context.Context, m Made) (io.ReadCloser, string, error) {
	if m.Open != nil {
		body, err := m.Open(ctx)
		if err != nil {
			return nil, "", fmt.Errorf("open it: %w", err)
		}
		return body, m.Name, nil
	}
	got, err := in.o.Fetcher.Fetch(ctx, m.URL)
	if err != nil {
		return nil, "", err
	}
	name := m.Name
	if name == "" {
		name = got.Name
	}
	return got.Body, name, nil
}

// cleanType keeps a type only if it is one.
func cleanType(typ string) string {
	typ, _, _ = strings.Cut(strings.ToLower(strings.TrimSpace(typ)), ";")
	kind, sub, found := strings.Cut(strings.TrimSpace(typ), "/")
	const letters = "abcdefghijklmnopqrstuvwxyz0123456789.+-"
	if !found || kind == "" || sub == "" || len(typ) > 100 || strings.Trim(kind, letters) != "" || strings.Trim(sub, letters) != "" {
		return ""
	}
	return typ
}
