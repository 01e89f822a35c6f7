// Package llm asks language models for answers and streams what they say.
//
// A Set holds the models of the settings. Set.Stream sends one request to one of them and calls emit for every
// piece of text, in order, in the caller's goroutine, as it arrives; what emit does slowly, the provider waits
// for. What a caller may rely on:
//
//   - An answer is complete only if Stream returns nil, and that means the provider itself said so. A stream that
//     merely ends is an Error of KindTruncated. Text already emitted stays valid whatever the error.
//   - A request is repeated, and another model asked in place of one that cannot answer, only before the first visible
//     piece, so text is never doubled or mixed. A model that does nothing but fail is not asked for a while.
//   - Cancelling ctx closes the connection to the provider at once. Without it, a request ends by its own
//     limits: first token, silence, total.
//   - Result.Usage is the provider's own count, else an estimate marked as such, also on error.
//   - Errors and log lines never hold keys, prompts, answers, or the provider's own prose.
//
// Nothing is remembered between requests but idle connections, which Set.Close gives up, how far estimates were off, and
// how models fared in the last minute. All methods may be called concurrently. No goroutine outlives a call of Stream, except those net/http keeps for idle connections.
package llm

import (
	"context"
	"io"
	"time"
)

// Role says whose words a message holds.
type Role string

// Roles.
const (
	RoleSystem    Role = "system"
	RoleUser      Role = "user"
	RoleAssistant Role = "assistant"
)

// Message is one message of a conversation.
type Message struct {
	Role    Role
	Content string
	Files   []File // of RoleUser only; they stand before Content
}

// File is something besides text: what a user shows to a model, or what a model has made.
type File struct {
	Name string // with its extension, for people; may be empty
	MIME string // such as "image/png"; empty: unknown
	// URL is where the file is. Of a request: where the provider may fetch it. Of an answer: where the provider says
	// it is, an address that nobody has checked. Empty: there is only Open.
	URL string
	// Open reads the file from the user's store, or from the provider with the provider's key. It may be called again.
	// nil: there is only URL.
	Open func(ctx context.Context) (io.ReadCloser, error)
}

// Conversation is what a provider remembers by itself.
type Conversation struct {
	ID   string // the provider's; empty: none yet
	Seen int    // so many of Request.Messages, from the first, are known to it
}

// Request is one question to a model.
type Request struct {
	// Model is an id of Set.Models. Empty: the default model.
	Model string
	// Messages is the conversation, oldest first, the newest being the question.
	Messages []Message
	// User is an opaque id of the end user, for the provider's abuse detection. Empty: not sent.
	User string
	// MaxOutput limits the answer, in tokens. 0: the provider entry's limit, else the provider's own.
	MaxOutput int
	// Conversations is what providers remember of this session, by id of Set.Models. Only those that keep the
	// conversation themselves (Dify) read it; without an entry they are given all of it.
	Conversations map[string]Conversation
	// Continue says that the last message is the beginning of the answer, and that only what follows it is wanted. It
	// may be set for models of which Set.Continues is true.
	Continue bool
	// Fit, if not nil, returns Messages and Conversations as they are for a fallback that is about to be asked, which may
	// be able to read less or more than the model. It is called in the goroutine of Set.Stream.
	Fit func(model string) ([]Message, map[string]Conversation)
}

// Delta is a piece of an answer: a text, or a file.
type Delta struct {
	Text    string // empty only with File, or with Replace where the provider has taken everything back
	Replace bool   // Text replaces all text that was emitted before
	File    *File  // made by the model; its Open works until Stream has returned and for a minute after that
}

// Usage is what a request cost, in tokens.
type Usage struct {
	In, Out, Total int64
	Cached         int64 // the part of In that the provider read from its cache
	Estimated      bool  // at least a part is not the provider's own count
}

// Plus adds what another request cost.
func (u Usage) Plus(v Usage) Usage {
	return Usage{In: u.In + v.In, Out: u.Out + v.Out, Total: u.Total + v.Total, Cached: u.Cached + v.Cached,
		Estimated: u.Estimated || v.Estimated}
}

// Finish says how an answer ended.
type Finish string

// How answers end. An answer that failed has no Finish.
const (
	FinishStop    Finish = "stop"    // the model had said all
	FinishLength  Finish = "length"  // cut at a limit of tokens
	FinishFilter  Finish = "filter"  // cut by the provider's content filter
	FinishRefusal Finish = "refusal" // the text, if any, is the model's refusal
)

// Result is what is known of an answer besides its text. On error it is filled as far as known.
type Result struct {
	Finish    Finish
	Usage     Usage
	Model     string // Chatbox id of the model that answered, which may be a fallback of the one that was asked
	RequestID string // the provider's id of the request, for its support

	// Conversation is the provider's id of the conversation that this answer belongs to, to be given back with the
	// session's next request to the same model. Empty: the provider keeps none.
	Conversation string

	// Paused says that the app behind the model waits for a person to act, outside of this conversation: its answer,
	// which may be empty, is all that comes until then.
	Paused bool

	FirstToken time.Duration // from the request to the first visible text; 0: there was none
	Duration   time.Duration // from the request to its end

	// Attempts counts the requests that were sent; Usage is the sum over them, the rest describes the last one.
	Attempts int

	counted bool // Usage.In is the provider's own count, although Usage is Estimated
}

// Provider sends one request to one outside service and never repeats it.
//
// It returns emit's error unchanged, and any other failure as an *Error. Request.Model is a Chatbox id and only
// copied to the Result: the provider's own name of the model is part of its Config.
type Provider interface {
	Stream(ctx context.Context, req Request, emit func(Delta) error) (Result, error)
}

// Model is a model that users may choose.
type Model struct {
	ID       string
	Name     string
	Provider string   // type of its provider, such as "openai"
	Vision   bool     // it can look at images
	Audio    bool     // it can listen to recordings
	Files    []string // what else it can read: extensions without the dot, such as "pdf"
}

// EstimateTokens guesses the number of tokens of a text: three for each four characters of Chinese, Japanese or
// Korean, one for each four others. For most languages that is within about 20 % of a current tokenizer; a Set
// corrects its estimates by what the model has reported before.
func EstimateTokens(text string) int {
	var c counter
	c.add(text)
	return c.tokens()
}

// counter is EstimateTokens over a text that arrives in pieces.
type counter struct{ cjk, other int }

func (c *counter) add(text string) {
	for _, r := range text {
		if isCJK(r) {
			c.cjk++
		} else {
			c.other++
		}
	}
}

func (c *counter) tokens() int { return (3*c.cjk + c.other + 3) / 4 }

// isCJK covers kana, bopomofo, hangul, the ideographs with their punctuation, and full-width forms.
func isCJK(r rune) bool {
	return r >= 0x2e80 && (r <= 0x9fff ||
		r >= 0xac00 && r <= 0xd7a3 ||
		r >= 0xf900 && r <= 0xfaff ||
		r >= 0xff00 && r <= 0xffef ||
		r >= 0x20000 && r <= 0x3ffff)
}

// perMessage is what a message costs beside its text: role and separators. perRequest is what an answer's
// beginning costs.
const (
	perMessage = 4
	perRequest = 3
)

func estimatePrompt(messages []Message) int64 {
	n := int64(perRequest)
	for _, m := range messages {
		n += perMessage + int64(EstimateTokens(m.Content))
	}
	return n
}
