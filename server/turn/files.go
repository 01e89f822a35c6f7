package turn

import (
	"context"
	"encoding/json"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/real-rm/chatbox/providers/llm"
	"github.com/real-rm/chatbox/sessionstore"
)

// Files keeps the files that models make. It may be called concurrently.
type Files interface {
	// Take stores the file and returns its id, or, where policy is not to fetch it, an https address to pass on as a link.
	Take(ctx context.Context, sessionID string, f llm.File) (fileID, link string, err error)
}

const (
	mostFiles = 16               // of one answer
	filesWait = 45 * time.Second // after the text is complete; providers keep files for a minute
)

// taking is the files of one answer, in the order in which the model made them. They are fetched beside the text.
type taking struct {
	store     Files           // nil: nobody keeps files
	ctx       context.Context //nolint:containedctx // the life of the answer, to which every file belongs
	cancel    context.CancelFunc
	sessionID string
	group     sync.WaitGroup

	mu  sync.Mutex // guards got and its elements
	got []*taken
}

// taken is what has become of one file.
type taken struct {
	name, id, link string // without id and link it is lost
}

func newTaking(ctx context.Context, store Files, sessionID string) *taking {
	t := &taking{store: store, sessionID: sessionID}
	t.ctx, t.cancel = context.WithCancel(ctx)
	return t
}

// add begins to take a file. It does not wait.
func (t *taking) add(f llm.File) {
	t.mu.Lock()
	defer t.mu.Unlock()
	one := &taken{name: f.Name}
	t.got = append(t.got, one)
	switch {
	case len(t.got) > mostFiles:
		return
	case t.store == nil:
		one.link = safeLink(f.URL)
		return
	}
	t.group.Go(func() {
		id, link, err := t.store.Take(t.ctx, t.sessionID, f)
		if err != nil {
			return
		}
		t.mu.Lock()
		defer t.mu.Unlock()
		if one.id = strings.Join(strings.Fields(id), ""); one.id == "" {
			one.link = safeLink(link)
		}
	})
}

// wait waits for all files. What is not done after a time, or when the answer is told to end, is given up.
func (t *taking) wait() {
	timer := time.AfterFunc(filesWait, t.cancel)
	defer timer.Stop()
	t.group.Wait()
}

// any says whether the answer has files.
func (t *taking) any() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.got) > 0
}

// link is a file that stays where it is.
type link struct {
	Name string `json:"name,omitempty"`
	URL  string `json:"url"`
}

// describe adds the files to the final event's metadata, and returns how many were lost.
func (t *taking) describe(meta map[string]string) (lost int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	var ids, notes []string
	var links []link
	for _, f := range t.got {
		switch {
		case f.id != "":
			ids = append(ids, f.id)
		case f.link != "":
			links = append(links, link{Name: plain(f.name), URL: f.link})
		default:
			notes = append(notes, fileNote(f.name))
		}
	}
	if len(ids) > 0 {
		meta[sessionstore.MetaFileIDs] = strings.Join(ids, " ")
	}
	if len(links) > 0 {
		b, _ := json.Marshal(links) // strings only: cannot fail
		meta[sessionstore.MetaLinks] = string(b)
	}
	if len(notes) > 0 {
		meta[sessionstore.MetaFilesLost] = strings.Join(notes, "\n")
	}
	return len(notes)
}

// safeLink returns an address that a page may show as a link, or "".
func safeLink(address string) string {
	u, err := url.Parse(address)
	if err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil {
		return ""
	}
	if s := u.String(); !strings.ContainsAny(s, " \t\r\n") && len(s) <= 4096 {
		return s
	}
	return ""
}
