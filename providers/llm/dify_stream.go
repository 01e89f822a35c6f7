package llm

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"iter"
	"strings"

	"github.com/tmaxmax/go-sse"
)

// maxDifyEvent is how long an event may be, in bytes. Recordings of speech and outputs of nodes are long.
const maxDifyEvent = 4 << 20

// difyFrame is one event of a stream. Any member may be missing or of another type than documented; what only some
// events have, and few need, is kept as it came.
type difyFrame struct {
	Event        string          `json:"event"`
	Task         string          `json:"task_id"`
	Conversation string          `json:"conversation_id"`
	Message      string          `json:"message_id"`
	Answer       *string         `json:"answer"`
	URL          string          `json:"url"`
	BelongsTo    string          `json:"belongs_to"`
	Metadata     json.RawMessage `json:"metadata"`
	Files        json.RawMessage `json:"files"`
	Data         json.RawMessage `json:"data"`

	raw []byte
}

// text is the text of a frame, "" if it has none.
func (f *difyFrame) text() string {
	if f.Answer == nil {
		return ""
	}
	return *f.Answer
}

// usage is what message_end says about tokens. nil: nothing, which is what some chatflows send in zeros.
func (f *difyFrame) usage() *Usage {
	var m struct {
		Usage struct {
			In    int64 `json:"prompt_tokens"`
			Out   int64 `json:"completion_tokens"`
			Total int64 `json:"total_tokens"`
		} `json:"usage"`
	}
	lenient(f.Metadata, &m)
	u := Usage{In: max(m.Usage.In, 0), Out: max(m.Usage.Out, 0), Total: m.Usage.Total}
	if u.Total = max(u.Total, u.In+u.Out); u.Total == 0 {
		return nil
	}
	return &u
}

// run is what workflow_finished and workflow_paused say about their run.
func (f *difyFrame) run() (status string, tokens int64) {
	var d struct {
		Status string `json:"status"`
		Tokens int64  `json:"total_tokens"`
	}
	lenient(f.Data, &d)
	return d.Status, max(d.Tokens, 0)
}

// lenient decodes as much as has the right type. It is false if the text is not JSON.
func lenient(text []byte, into any) bool {
	if len(text) == 0 {
		return false
	}
	err := json.Unmarshal(text, into)
	var wrongType *json.UnmarshalTypeError
	return err == nil || errors.As(err, &wrongType)
}

// difyFrames reads a stream up to its end. Events without data, the keep-alive among them, are left out. The error, if
// any, comes last; an event that is cut off by the end of the stream is none.
func difyFrames(body io.Reader) iter.Seq2[*difyFrame, error] {
	return func(yield func(*difyFrame, error) bool) {
		for event, err := range sse.Read(body, &sse.ReadConfig{MaxEventSize: maxDifyEvent}) {
			switch {
			case err != nil:
				yield(nil, err)
				return
			case event.Data == "" || event.Type == "ping":
				continue
			}
			f := &difyFrame{raw: []byte(event.Data)}
			if !lenient(f.raw, f) {
				yield(nil, errors.New("an event is not JSON"))
				return
			}
			if !yield(f, nil) {
				return
			}
		}
	}
}

// difyCall is a call to Dify under way.
type difyCall struct {
	*call
	app          *dify
	user         string
	task         string // of the run; empty: not known yet
	known        string // the conversation that the request belongs to; empty: a new one
	conversation string // that the answer belongs to; empty: none yet

	shown    strings.Builder // the text as the user sees it
	draft    bool            // a part of it came as agent_message
	closing  string          // what came as message after that
	diverged bool            // closing has taken the place of the draft
	replaced bool            // by moderation
	files    map[string]bool // that were shown, by place

	paused bool
	broken *Error // the workflow failed
	failed bool   // there was an error event
}

func (p *dify) newCall(dog *watchdog, req Request, emit func(Delta) error) *difyCall {
	c := &difyCall{call: newCall(p.config, dog, req, emit), app: p, user: req.User, files: map[string]bool{}}
	if c.user == "" {
		c.user = anonymous
	}
	c.known = req.Conversations[p.config.ID].ID
	c.conversation = c.known
	return c
}

// read takes the events of the stream until it ends. It goes on after the terminal event, since usage may follow, and a
// connection that is read to its end can be used again.
func (c *difyCall) read(ctx context.Context) error {
	defer func() { _ = c.body.Close() }()
	for f, err := range difyFrames(c.body) {
		if ctx.Err() != nil {
			break // nothing is emitted after a cancel, even if it has arrived
		}
		if err != nil {
			return err
		}
		if c.done && strings.HasPrefix(f.Event, "tts_message") {
			break // speech, which nobody asked for and which may take long
		}
		if err := c.take(f); err != nil {
			return err
		}
	}
	return nil
}

// take takes one event. An error is emit's, or what the provider says.
func (c *difyCall) take(f *difyFrame) error {
	if id := difyID(f.Conversation); id != "" {
		c.conversation = id
	}
	if c.task == "" {
		c.task = difyID(f.Task)
	}
	if c.requestID == "" {
		c.requestID = difyID(f.Message)
	}
	if f.Event == "error" {
		if c.done {
			return nil // of what comes after the answer
		}
		c.failed = true
		return c.fault(difyFailure(f.raw, 0))
	}
	c.dog.alive()
	switch f.Event {
	case "message":
		return c.message(f.text())
	case "agent_message":
		return c.agentMessage(f.text())
	case "message_file":
		if f.URL != "" {
			return c.offer(difyFile{URL: f.URL, BelongsTo: f.BelongsTo})
		}
		return c.message(f.text()) // Dify calls texts so once there is a file
	case "message_replace":
		c.replaced = true
		return c.put(f.text())
	case "message_end":
		return c.messageEnd(f)
	case "workflow_finished", "workflow_paused":
		c.workflow(f)
	}
	return nil
}

// message takes a text, or, in new agent apps, the whole answer, perhaps in pieces, which was sent as agent_message
// before. The whole is the answer that Dify keeps: only where it says something else does it replace what was shown.
func (c *difyCall) message(t string) error {
	switch {
	case !c.draft || c.diverged:
		return c.add(t)
	case c.replaced:
		return nil // the answer as it was before moderation
	}
	c.closing += t
	shown := c.shown.String()
	switch {
	case strings.HasPrefix(shown, c.closing):
		return nil // so far it repeats
	case strings.HasPrefix(c.closing, shown):
		c.diverged = true
		return c.add(c.closing[len(shown):])
	default:
		c.diverged = true
		return c.put(c.closing)
	}
}

func (c *difyCall) agentMessage(t string) error {
	c.draft, c.diverged, c.closing = true, false, ""
	return c.add(t)
}

// add shows a text after those before it.
func (c *difyCall) add(t string) error {
	c.shown.WriteString(t)
	return c.text(t)
}

// put shows a text in place of those before it.
func (c *difyCall) put(t string) error {
	if t == c.shown.String() {
		return nil
	}
	c.shown.Reset()
	c.shown.WriteString(t)
	return c.replace(t)
}

// messageEnd ends the answer. In chatflows workflow_finished may come before it or after it.
func (c *difyCall) messageEnd(f *difyFrame) error {
	if u := f.usage(); u != nil {
		c.usage = u
	}
	c.complete()
	if t := c.closing; t != "" && !c.diverged && strings.TrimSpace(t) != strings.TrimSpace(c.shown.String()) {
		if err := c.put(t); err != nil { // only the last part of the draft was the answer
			return err
		}
	}
	var files []difyFile
	lenient(f.Files, &files)
	for _, file := range files {
		if err := c.offer(file); err != nil {
			return err
		}
	}
	return nil
}

// workflow takes the end of a chatflow's run.
func (c *difyCall) workflow(f *difyFrame) {
	status, tokens := f.run()
	if c.usage == nil && tokens > 0 {
		// The total is the provider's; what of it is output, which it does not say, is our count of what came.
		out := min(int64(c.out.tokens()), tokens)
		c.usage = &Usage{In: tokens - out, Out: out, Total: tokens}
	}
	switch {
	case f.Event == "workflow_paused":
		c.paused = true
		c.complete()
	case status == "succeeded" || status == "partial-succeeded":
		c.complete()
	case status == "failed":
		c.broken = newError(KindServer, errors.New("the workflow failed")) // an error event says more
		c.dog.finished()
	case status == "stopped":
		c.broken = &Error{Kind: KindServer, Code: status, cause: errors.New("the workflow was stopped by somebody else")}
		c.dog.finished()
	}
}

// complete says that the provider has said that the answer is complete.
func (c *difyCall) complete() {
	c.done, c.broken = true, nil
	c.dog.finished()
}

// ended says whether the run is over, as far as we know.
func (c *difyCall) ended() bool { return c.done || c.failed || c.broken != nil }

// fault finishes an error of the provider's.
func (c *difyCall) fault(err error) error {
	var e *Error
	if errors.As(err, &e) && c.known != "" && e.lostConversation() {
		e.Kind, e.Retryable, e.cause = KindInvalid, true, errConversationLost
		c.conversation = ""
	}
	return err
}

// result makes what Stream returns.
func (c *difyCall) result(ctx context.Context, err error) (Result, error) {
	if c.broken != nil && c.emitE == nil && !c.failed {
		c.dog.fired.Store(nil) // the end of its stream is no failure of its own
		err = c.broken
	}
	res, err := c.end(ctx, err)
	res.Conversation, res.Paused = c.conversation, c.paused && err == nil
	return res, err
}
