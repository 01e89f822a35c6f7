package protocol

import "time"

// Code is a stable error word that clients may act upon. The table in package server says what each means for
// HTTP, for the socket and for the client.
type Code string

// Error codes.
const (
	CodeUnauthorized     Code = "UNAUTHORIZED"
	CodeTokenExpired     Code = "TOKEN_EXPIRED"
	CodeForbidden        Code = "FORBIDDEN"
	CodeBadFrame         Code = "BAD_FRAME"
	CodeUnknownType      Code = "UNKNOWN_TYPE"
	CodeMissingField     Code = "MISSING_FIELD"
	CodeTooLarge         Code = "TOO_LARGE"
	CodeInvalidModel     Code = "INVALID_MODEL"
	CodeNotFound         Code = "NOT_FOUND"
	CodeLLMUnavailable   Code = "LLM_UNAVAILABLE"
	CodeStorageFull      Code = "STORAGE_FULL"
	CodeStoreUnavailable Code = "STORE_UNAVAILABLE"
	CodeInternal         Code = "INTERNAL"
	CodeRateLimited      Code = "RATE_LIMITED"
	CodeBudgetExceeded   Code = "BUDGET_EXCEEDED"
	CodeConnectionLimit  Code = "CONNECTION_LIMIT"
	CodeSessionEnded     Code = "SESSION_ENDED"
	CodeSessionActive    Code = "SESSION_ACTIVE"
	CodeSessionAssisted  Code = "SESSION_ASSISTED"
)

// Error is a refusal in the protocol's words. Message is meant for people and never holds internal text.
type Error struct {
	Code        Code
	Message     string
	Recoverable bool          // sending the same again later may work
	RetryAfter  time.Duration // when; zero: no advice
}

func (e *Error) Error() string { return string(e.Code) + ": " + e.Message }

// object is Error as it stands in frames and in problem details.
type object struct {
	Code        Code   `json:"code"`
	Message     string `json:"message"`
	Recoverable bool   `json:"recoverable"`
	RetryAfter  int64  `json:"retry_after,omitempty"` // milliseconds
}

// Object returns the error in its JSON shape.
func (e *Error) Object() any {
	return object{e.Code, e.Message, e.Recoverable, e.RetryAfter.Milliseconds()}
}
