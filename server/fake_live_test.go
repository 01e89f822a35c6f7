package server

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/real-rm/chatbox/server/chat"
	"github.com/real-rm/chatbox/sessionstore"
	"github.com/real-rm/chatbox/sessionstore/live"
)

// fakeLive is the live store in memory, with its bus. A function that is set is asked in place of the memory.
type fakeLive struct {
	// Set before the server runs, or by set.
	OpenFn        func(context.Context, sessionstore.OpenRequest) (sessionstore.Opened, error)
	ReadFn        func(context.Context, string, sessionstore.Position) (sessionstore.Page, error)
	SubscribeFn   func(context.Context, string) error
	TouchFn       func(context.Context, []live.Conn) ([]live.Conn, error)
	GoneFn        func(context.Context, live.Conn) error
	SessionFn     func(context.Context, string) (sessionstore.Session, error)
	ActiveFn      func(context.Context, string) (sessionstore.Session, bool, error)
	EndFn         func(ctx context.Context, sid, reason, next string) error
	PingFn        func(context.Context) error
	RunBusFn      func(context.Context, live.Handler) error
	AppendFn      func(context.Context, sessionstore.Append) (sessionstore.Appended, error)
	PositionsFn   func(context.Context, []string) (map[string]live.Top, error)
	MayHaveLostFn func(context.Context, string) (bool, error)

	bus sync.Mutex // held while an event is made and delivered, so that they come in order

	mu         sync.Mutex // guards the fields above and below
	sessions   map[string]*book
	active     map[string]string // by user
	handler    live.Handler
	mute       bool // the bus loses what is published
	opened     []sessionstore.OpenRequest
	gone       []live.Conn
	present    map[live.Conn]bool
	touched    [][]live.Conn
	published  []sessionstore.Event
	stopped    []string
	rebuilt    []string
	remembered int
}

// book is one session.
type book struct {
	sessionstore.Session
	events []sessionstore.Event
	ids    map[string]int64
	// running is what Read gives as the running answer.
	running *sessionstore.Message
	// trimmed is the seq up to which only MongoDB has the events.
	trimmed int64
}

var (
	_ Live             = (*fakeLive)(nil)
	_ chat.Store       = (*fakeLive)(nil)
	_ chat.LiveHistory = (*fakeLive)(nil)
)

func newFakeLive() *fakeLive {
	return &fakeLive{sessions: map[string]*book{}, active: map[string]string{}, present: map[live.Conn]bool{}}
}

// set changes what the fake does, or reads what it has seen.
func (f *fakeLive) set(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
}

// fn returns a function field under the lock.
func fn[T any](f *fakeLive, field *T) T {
	f.mu.Lock()
	defer f.mu.Unlock()
	return *field
}

// begin makes an active session of the user.
func (f *fakeLive) begin(user, sid string) *book {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.beginLocked(sessionstore.OpenRequest{UserID: user}, sid)
}

func (f *fakeLive) beginLocked(r sessionstore.OpenRequest, sid string) *book {
	now := time.Now().UTC()
	b := &book{ids: map[string]int64{}, Session: sessionstore.Session{
		ID: sid, UserID: r.UserID, UserName: r.UserName, ModelID: r.ModelID, Active: true, Owner: sessionstore.OwnerAI,
		Position: sessionstore.Position{Epoch: "1-a"}, Start: now, LastActivity: now,
	}}
	f.sessions[sid], f.active[r.UserID] = b, sid
	b.add(sessionstore.Event{Header: sessionstore.Header{Type: sessionstore.TypeStarted, SessionID: sid, Sender: sessionstore.SenderSystem}})
	return b
}

// add appends an event and returns it as the bus brings it. With fakeLive.mu held.
func (b *book) add(ev sessionstore.Event) sessionstore.Message {
	b.Seq++
	ev.Seq = b.Seq
	b.events = append(b.events, ev)
	if ev.MessageID != "" {
		b.ids[sessionstore.MessageKey(ev.Sender, ev.MessageID)] = ev.Seq
	}
	if ev.Type == sessionstore.TypeUserMessage || ev.Type == sessionstore.TypeAIResponse {
		b.Messages++
	}
	b.LastActivity = time.Now().UTC()
	return b.message(ev)
}

func (b *book) message(ev sessionstore.Event) sessionstore.Message {
	return sessionstore.Message{
		SessionID: b.ID, Epoch: b.Epoch, Seq: ev.Seq, Type: ev.Type, Sender: ev.Sender, MessageID: ev.MessageID,
		Attempt: ev.Attempt, Chunk: ev.Chunk, Frame: ev.Frame(),
	}
}

// deliver brings an event to this replica, as the bus does.
func (f *fakeLive) deliver(m sessionstore.Message) {
	f.mu.Lock()
	h, mute := f.handler, f.mute
	f.mu.Unlock()
	if h != nil && !mute {
		h.Message(m)
	}
}

func (f *fakeLive) Open(ctx context.Context, r sessionstore.OpenRequest) (sessionstore.Opened, error) {
	if open := fn(f, &f.OpenFn); open != nil {
		return open(ctx, r)
	}
	return f.open(r)
}

func (f *fakeLive) open(r sessionstore.OpenRequest) (sessionstore.Opened, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.opened = append(f.opened, r)
	sid, found := f.active[r.UserID]
	if found && r.NewOnly {
		return sessionstore.Opened{}, &sessionstore.ActiveError{SessionID: sid}
	}
	if !found && r.NoNew {
		return sessionstore.Opened{}, fmt.Errorf("open session: %w", sessionstore.ErrNotFound)
	}
	if !found {
		sid = fmt.Sprintf("p01-%s-%d", r.UserID, len(f.sessions)+1)
		f.beginLocked(r, sid)
	}
	b := f.sessions[sid]
	sockets := 0
	if r.ConnID != "" {
		f.present[live.Conn{SessionID: sid, ConnID: r.ConnID}] = true
	}
	for c := range f.present {
		if c.SessionID == sid {
			sockets++
		}
	}
	return sessionstore.Opened{
		Sockets: sockets,
		Session: b.Session, Created: !found, Resumed: sid == r.Want,
		Recovered: sid == r.Want && r.Position.Epoch == b.Epoch && r.Position.Seq >= b.trimmed && r.Position.Seq <= b.Seq,
	}, nil
}

func (f *fakeLive) Read(ctx context.Context, sid string, pos sessionstore.Position) (sessionstore.Page, error) {
	if read := fn(f, &f.ReadFn); read != nil {
		return read(ctx, sid, pos)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	b := f.sessions[sid]
	if b == nil {
		return sessionstore.Page{}, sessionstore.ErrNotFound
	}
	page := sessionstore.Page{Position: b.Position, Running: b.running, Session: b.Session}
	from := pos.Seq
	if pos.Epoch != b.Epoch || pos.Seq < b.trimmed {
		page.Snapshot, page.HasMore, from = true, b.trimmed > 0, b.trimmed
	}
	for _, ev := range b.events {
		if ev.Seq > from {
			page.Messages = append(page.Messages, b.message(ev))
		}
	}
	return page, nil
}

func (f *fakeLive) Subscribe(ctx context.Context, sid string) error {
	if subscribe := fn(f, &f.SubscribeFn); subscribe != nil {
		return subscribe(ctx, sid)
	}
	return nil
}

func (f *fakeLive) Unsubscribe(string) {}

func (f *fakeLive) Touch(ctx context.Context, conns []live.Conn) ([]live.Conn, error) {
	f.set(func() { f.touched = append(f.touched, slices.Clone(conns)) })
	if touch := fn(f, &f.TouchFn); touch != nil {
		return touch(ctx, conns)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	var missing []live.Conn
	for _, c := range conns {
		if !f.present[c] {
			missing = append(missing, c)
		}
	}
	return missing, nil
}

func (f *fakeLive) Gone(ctx context.Context, c live.Conn) error {
	f.set(func() {
		f.gone = append(f.gone, c)
		delete(f.present, c)
	})
	if gone := fn(f, &f.GoneFn); gone != nil {
		return gone(ctx, c)
	}
	return nil
}

// Bury takes sockets of any other replica than the tests' one, r1, for left by the dead.
func (f *fakeLive) Bury(_ context.Context, sid string) (sockets int, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for c := range f.present {
		if c.SessionID != sid {
			continue
		}
		if strings.HasPrefix(c.ConnID, "r1.") {
			sockets++
		} else {
			delete(f.present, c)
		}
	}
	return sockets, nil
}

func (f *fakeLive) Session(ctx context.Context, sid string) (sessionstore.Session, error) {
	if session := fn(f, &f.SessionFn); session != nil {
		return session(ctx, sid)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if b := f.sessions[sid]; b != nil {
		return b.Session, nil
	}
	return sessionstore.Session{}, fmt.Errorf("session %s: %w", sid, sessionstore.ErrNotFound)
}

func (f *fakeLive) Active(ctx context.Context, user string) (sessionstore.Session, bool, error) {
	if active := fn(f, &f.ActiveFn); active != nil {
		return active(ctx, user)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if b := f.sessions[f.active[user]]; b != nil {
		return b.Session, true, nil
	}
	return sessionstore.Session{}, false, nil
}

func (f *fakeLive) End(ctx context.Context, sid, reason, next string) error {
	if end := fn(f, &f.EndFn); end != nil {
		return end(ctx, sid, reason, next)
	}
	f.bus.Lock()
	defer f.bus.Unlock()
	f.mu.Lock()
	b := f.sessions[sid]
	if b == nil {
		f.mu.Unlock()
		return sessionstore.ErrNotFound
	}
	ev := sessionstore.Event{Header: sessionstore.Header{Type: sessionstore.TypeEnded, SessionID: sid, Sender: sessionstore.SenderSystem}}
	ev.Metadata = map[string]string{sessionstore.MetaReason: reason}
	if next != "" {
		ev.Metadata[sessionstore.MetaNext] = next
	}
	m := b.add(ev)
	b.Active, b.End = false, time.Now().UTC()
	delete(f.active, b.UserID)
	for c := range f.present {
		if c.SessionID == sid {
			delete(f.present, c)
		}
	}
	f.mu.Unlock()
	f.deliver(m)
	return nil
}

func (f *fakeLive) Ping(ctx context.Context) error {
	if ping := fn(f, &f.PingFn); ping != nil {
		return ping(ctx)
	}
	return nil
}

func (f *fakeLive) RunBus(ctx context.Context, h live.Handler) error {
	f.set(func() { f.handler = h })
	if run := fn(f, &f.RunBusFn); run != nil {
		return run(ctx, h)
	}
	<-ctx.Done()
	return nil
}

func (f *fakeLive) Append(ctx context.Context, a sessionstore.Append) (sessionstore.Appended, error) {
	if add := fn(f, &f.AppendFn); add != nil {
		return add(ctx, a)
	}
	f.bus.Lock()
	defer f.bus.Unlock()
	f.mu.Lock()
	b := f.sessions[a.Event.SessionID]
	if b == nil {
		f.mu.Unlock()
		return sessionstore.Appended{}, sessionstore.ErrNotFound
	}
	if seq, twice := b.ids[sessionstore.MessageKey(a.Event.Sender, a.Event.MessageID)]; twice {
		f.mu.Unlock()
		return sessionstore.Appended{Position: sessionstore.Position{Epoch: b.Epoch, Seq: seq}, Duplicate: true}, nil
	}
	if !b.Active {
		f.mu.Unlock()
		return sessionstore.Appended{}, sessionstore.ErrEnded
	}
	if b.Name == "" {
		b.Name = a.Name
	}
	m := b.add(a.Event)
	f.mu.Unlock()
	f.deliver(m)
	return sessionstore.Appended{Position: sessionstore.Position{Epoch: m.Epoch, Seq: m.Seq}, Owed: a.Owe}, nil
}

func (f *fakeLive) Publish(_ context.Context, ev sessionstore.Event) error {
	f.bus.Lock()
	defer f.bus.Unlock()
	f.mu.Lock()
	f.published = append(f.published, ev)
	b := f.sessions[ev.SessionID]
	f.mu.Unlock()
	if b == nil {
		return sessionstore.ErrNotFound
	}
	f.deliver(b.message(ev))
	return nil
}

func (f *fakeLive) Stop(_ context.Context, _, target string) error {
	f.set(func() { f.stopped = append(f.stopped, target) })
	return nil
}

func (f *fakeLive) Restore(context.Context, string, sessionstore.Sender, string, int64) error {
	return nil
}

func (f *fakeLive) Before(_ context.Context, sid string, before int64, limit int) ([]sessionstore.Event, int64, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	b := f.sessions[sid]
	if b == nil {
		return nil, 0, sessionstore.ErrNotFound
	}
	var out []sessionstore.Event
	for _, ev := range b.events {
		if ev.Seq > b.trimmed && (before <= 0 || ev.Seq < before) {
			out = append(out, ev)
		}
	}
	return out[max(0, len(out)-limit):], b.Seq, nil
}
