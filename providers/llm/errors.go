package llm

import (
	"errors"
	"strconv"
	"strings"
	"time"
)

// Kind says what went wrong, in the words that decide what to do about it.
type Kind string

// Kinds of errors.
const (
	KindAuth          Kind = "auth"           // the key is wrong: an operator must act
	KindPermission    Kind = "permission"     // the key may not do this
	KindNotFound      Kind = "not_found"      // no such model, or no such address
	KindInvalid       Kind = "invalid"        // the provider does not understand the request
	KindTooLarge      Kind = "too_large"      // the request is too large in bytes
	KindContextLength Kind = "context_length" // the conversation is too long for the model
	KindContent       Kind = "content"        // refused for what the prompt says
	KindRate          Kind = "rate"           // too many requests
	KindQuota         Kind = "quota"          // out of credit: an operator must act
	KindOverloaded    Kind = "overloaded"     // the provider is too busy
	KindServer        Kind = "server"         // the provider broke, or what it says is no answer: a page, a redirect, broken JSON
	KindNetwork       Kind = "network"        // no connection, or it broke
	KindTimeout       Kind = "timeout"        // no first token in time, or not done in time
	KindIdle          Kind = "idle"           // the stream fell silent
	KindTruncated     Kind = "truncated"      // the stream ended without saying that the answer is complete
	KindCancelled     Kind = "cancelled"      // the caller's ctx ended
	KindUnavailable   Kind = "unavailable"    // not asked: the model has done nothing but fail just now, see Unwrap for how
)

// Error is a failed request. Its text is safe to log: it holds neither keys nor contents.
type Error struct {
	Kind       Kind
	Retryable  bool          // the same request may succeed later, provided no text was emitted yet
	RetryAfter time.Duration // the provider asks to wait at least this long; 0: it did not say
	Status     int           // HTTP status; 0: none, or the error came inside a stream
	Code       string        // the provider's word for it, if it is one word
	Provider   string        // Chatbox id of the model
	RequestID  string

	once  bool  // may be tried again once only
	cause error // without addresses and contents; may be nil
}

// Error returns what is known, without the provider's own prose, which may quote prompts and keys.
func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString("llm provider " + strconv.Quote(e.Provider) + ": " + string(e.Kind))
	if e.Status != 0 {
		b.WriteString(", status " + strconv.Itoa(e.Status))
	}
	if e.Code != "" {
		b.WriteString(", code " + e.Code)
	}
	if e.RequestID != "" {
		b.WriteString(", request " + e.RequestID)
	}
	if e.cause != nil {
		b.WriteString(": " + e.cause.Error())
	}
	return b.String()
}

// Unwrap returns the cause, such as context.Canceled.
func (e *Error) Unwrap() error { return e.cause }

// KindOf returns the kind of an error of this package, and "" for others.
func KindOf(err error) Kind {
	var e *Error
	if errors.As(err, &e) {
		return e.Kind
	}
	return ""
}

// retryable are the kinds after which the same request may succeed.
func (k Kind) retryable() bool {
	switch k {
	case KindRate, KindOverloaded, KindServer, KindNetwork, KindTimeout, KindIdle, KindTruncated, KindUnavailable:
		return true
	default:
		return false
	}
}

// word returns s if it is a short identifier, else "": providers put prose, and thereby contents, anywhere.
func word(s string) string {
	if len(s) > 64 {
		return ""
	}
	for i := range len(s) {
		c := s[i]
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '_' && c != '-' && c != '.' && c != ':' {
			return ""
		}
	}
	return s
}
