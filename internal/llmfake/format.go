package llmfake

import (
	"fmt"
	"net/http"
	"strconv"
	"strings"
)

// Formats, as requests and bills name them.
const (
	formatChat       = "openai"
	formatResponses  = "responses"
	formatAnthropic  = "anthropic"
	formatDify       = "dify"
	formatTranscribe = "transcription"
	formatSpeech     = "speech"
)

// A format is one of the wire formats, as far as requests and HTTP errors go.
type format interface {
	// key is what a request carries as its key, wrongKey the refusal of another one.
	key(r *http.Request) string
	wrongKey(key string) failure
	// read checks a request and says what it asks for, or what the real server refuses it with.
	read(s *Server, r *http.Request, raw []byte) (ask, *failure)
	// scripted is the error that the real server gives with a status. A code, if given, decides within it.
	scripted(status int, code string) failure
	// inside is the error that the real server gives inside a stream: overloaded, server, rate or quota. Its status is
	// that of an answer that is not streamed.
	inside(kind string) failure
	// tooLong is the error that the real server gives for a prompt that does not fit.
	tooLong(o overflow) failure
	// refuse writes an error.
	refuse(w http.ResponseWriter, e failure)
	// announce sets the headers of answers and errors that belong to a request.
	announce(h http.Header, requestID string)
	// speak returns the writer of one answer, and may prepare the answer for it.
	speak(a *answer) voice
}

// A voice writes one answer.
type voice interface {
	open()              // what stands before the first piece
	think(piece string) // a piece of reasoning
	say(piece string)   // a piece of the answer, or of a refusal
	end()               // the regular end; the bill is complete before it
	fail(e failure)     // an error inside the stream
	whole(text string)  // an answer that is not streamed
	over()              // the last call, whatever came of it
}

// An ask is what a request of any format comes down to.
type ask struct {
	format      string
	model, user string
	stream      bool
	messages    []Message
	question    string  // the text of the last user message, without surrounding space
	blocks      []block // what the prompt costs, in order
	shown       int     // files with the last user message
	limit       int     // tokens that the caller allows; 0: any
	usage       bool    // wants the usage of a stream
	cacheStep   int64   // the cache works in steps of so many tokens
	lateLength  bool    // a stream begins before the length of the prompt is known
	dify        *difyRun
}

// A block is a part of a prompt that can be the end of what is cached.
type block struct {
	text   string // decides whether it is the same
	tokens int64
	mark   bool // it may be cached up to here
}

// prompt is what the prompt costs in tokens.
func (k ask) prompt() int64 {
	n := int64(0)
	for _, b := range k.blocks {
		n += b.tokens
	}
	return n
}

// lastUser returns the text of the last user message.
func lastUser(messages []Message) string {
	for i := len(messages) - 1; i >= 0; i-- {
		if messages[i].Role == "user" {
			return strings.TrimSpace(messages[i].Content)
		}
	}
	return ""
}

// earlier counts the messages of the conversation before the last user message.
func (k ask) earlier() int {
	n := 0
	for _, m := range k.messages {
		if m.Role == "user" || m.Role == "assistant" {
			n++
		}
	}
	return max(n-1, 0)
}

// overflow says by how much a request does not fit into the context, in tokens.
type overflow struct{ prompt, limit, context int64 }

// anyOverflow is that of a scripted error.
func anyOverflow() overflow { return overflow{prompt: 200_001, context: 200_000} }

// overflow says whether prompt and answer fit into a context of so many tokens. Sound has limits of its own.
func (k ask) overflow(context int64) (overflow, bool) {
	o := overflow{prompt: k.prompt(), limit: int64(k.limit), context: context}
	return o, context > 0 && k.format != formatTranscribe && k.format != formatSpeech && o.prompt+o.limit > context
}

// failure is an error answer of a server.
type failure struct {
	status     int
	typ, code  string // code empty: null
	message    string
	param      string  // empty: null
	retryAfter float64 // seconds; 0: not said
	noJSON     bool    // it does not come from the server itself, but from what stands before it
}

func invalid(format string, args ...any) *failure {
	return &failure{status: http.StatusBadRequest, typ: "invalid_request_error", message: fmt.Sprintf(format, args...)}
}

// about names the parameter that a failure is about.
func (e *failure) about(param string) *failure {
	e.param = param
	return e
}

// orNull is a string, or null where it is empty.
func orNull(s string) any {
	if s == "" {
		return nil
	}
	return s
}

// retry sets the header that asks to wait. Fractions need the header of OpenAI and Anthropic.
func (e failure) retry(h http.Header) {
	switch ms := int64(e.retryAfter * 1000); {
	case ms <= 0:
	case ms%1000 != 0:
		h.Set("Retry-After-Ms", strconv.FormatInt(ms, 10))
	default:
		h.Set("Retry-After", strconv.FormatInt(ms/1000, 10))
	}
}

// edge writes an error as a load balancer does.
func (e failure) edge(w http.ResponseWriter) {
	w.Header().Set("Content-Type", "text/html")
	w.WriteHeader(e.status)
	_, _ = fmt.Fprintf(w, "<html><head><title>%d %s</title></head><body><center><h1>%[1]d %[2]s</h1></center></body></html>\n",
		e.status, http.StatusText(e.status))
}

func or(a, b string) string {
	if a != "" {
		return a
	}
	return b
}
