package server

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"runtime/debug"
	"time"

	"github.com/labstack/echo/v4"

	"github.com/real-rm/chatbox/hub"
	"github.com/real-rm/chatbox/server/auth"
	"github.com/real-rm/chatbox/server/protocol"
	"github.com/real-rm/chatbox/sessionstore"
	"github.com/real-rm/chatbox/sessionstore/archive"
)

// outcome is what an error means to the outside: the one table from errors to HTTP, frames and close codes.
type outcome struct {
	err         error
	code        protocol.Code
	status      int
	message     string
	recoverable bool
	retryAfter  time.Duration
	close       hub.Code // the socket is closed after the error frame; zero: it lives on
	internal    bool     // our failure: the cause is logged with a stack, the client sees the message only
}

// outcomes is searched from the top; the first match counts.
var outcomes = []outcome{
	{err: auth.ErrExpired, code: protocol.CodeTokenExpired, status: http.StatusUnauthorized, message: "The token has expired.", close: hub.CodeTokenExpired},
	{err: auth.ErrUnauthorized, code: protocol.CodeUnauthorized, status: http.StatusUnauthorized, message: "A valid token is required.", close: hub.CodeAuth},
	{err: auth.ErrForbidden, code: protocol.CodeForbidden, status: http.StatusForbidden, message: "This is not allowed."},
	{err: errConnectionLimit, code: protocol.CodeConnectionLimit, status: http.StatusServiceUnavailable, message: "Too many connections. Try again soon.", recoverable: true, retryAfter: 5 * time.Second, close: hub.CodeOverloaded},
	{err: errTooMany, code: protocol.CodeConnectionLimit, status: http.StatusTooManyRequests, message: "Too many connections of one user. Close some.", close: hub.CodeTooMany},
	{err: errCrowded, code: protocol.CodeStorageFull, status: http.StatusServiceUnavailable, message: "The service is full. Try again soon.", recoverable: true, retryAfter: 5 * time.Second},
	{err: errMoved, code: protocol.CodeStoreUnavailable, status: http.StatusServiceUnavailable, message: "The session goes on elsewhere. Connect again.", recoverable: true, retryAfter: time.Second, close: hub.CodeResync},
	{err: errDraining, code: protocol.CodeConnectionLimit, status: http.StatusServiceUnavailable, message: "This server is going away. Try again.", recoverable: true, retryAfter: time.Second, close: hub.CodeDrain},
	{err: errRateLimited, code: protocol.CodeRateLimited, status: http.StatusTooManyRequests, message: "Too many messages. Wait a moment.", recoverable: true, retryAfter: time.Second},
	{err: sessionstore.ErrBudget, code: protocol.CodeBudgetExceeded, status: http.StatusTooManyRequests, message: "You have asked all that you may ask today.", recoverable: true, retryAfter: time.Hour},
	{err: errBadRequest, code: protocol.CodeBadFrame, status: http.StatusBadRequest, message: "The request is not well-formed."},
	{err: errNoUpgrade, code: protocol.CodeBadFrame, status: http.StatusUpgradeRequired, message: "This address speaks WebSocket."},
	{err: archive.ErrCursor, code: protocol.CodeBadFrame, status: http.StatusBadRequest, message: "The cursor is not one of ours."},
	{err: errNotFound, code: protocol.CodeNotFound, status: http.StatusNotFound, message: "There is nothing here."},
	{err: sessionstore.ErrActive, code: protocol.CodeSessionActive, status: http.StatusConflict, message: "Another session is active."},
	{err: sessionstore.ErrAssisted, code: protocol.CodeSessionAssisted, status: http.StatusConflict, message: "Somebody else is assisting this session."},
	{err: sessionstore.ErrEnded, code: protocol.CodeSessionEnded, status: http.StatusConflict, message: "The session has ended.", close: hub.CodeEnded},
	{err: sessionstore.ErrNotFound, code: protocol.CodeStoreUnavailable, status: http.StatusServiceUnavailable, message: "The session is being restored. Try again.", recoverable: true, retryAfter: time.Second, close: hub.CodeResync},
	{err: sessionstore.ErrFull, code: protocol.CodeStorageFull, status: http.StatusServiceUnavailable, message: "The service is full. Your message was not sent; try again soon.", recoverable: true, retryAfter: 5 * time.Second, internal: true},
	{err: sessionstore.ErrAway, code: protocol.CodeStoreUnavailable, status: http.StatusServiceUnavailable, message: "The service is briefly unavailable. Try again.", recoverable: true, retryAfter: time.Second, internal: true},
	{err: sessionstore.ErrArchive, code: protocol.CodeStoreUnavailable, status: http.StatusServiceUnavailable, message: "Older messages are briefly unavailable. Try again.", recoverable: true, retryAfter: 2 * time.Second, internal: true},
	{err: context.DeadlineExceeded, code: protocol.CodeStoreUnavailable, status: http.StatusServiceUnavailable, message: "The service is briefly unavailable. Try again.", recoverable: true, retryAfter: time.Second, internal: true},
}

// unknown is the outcome of every error that is not in the table: a mistake of ours.
var unknown = outcome{code: protocol.CodeInternal, status: http.StatusInternalServerError, message: "Something went wrong on our side. Try again.", recoverable: true, retryAfter: time.Second, internal: true}

// Errors of the edge itself.
var (
	errConnectionLimit = errors.New("connection limit reached")
	errTooMany         = errors.New("user or address has too many connections")
	errCrowded         = errors.New("no room for new sessions while MongoDB is away")
	errMoved           = errors.New("session is not here any more")
	errDraining        = errors.New("replica is draining")
	errRateLimited     = errors.New("rate limit reached")
	errBadRequest      = errors.New("bad request")
	errNotFound        = errors.New("not found")
	errNoUpgrade       = errors.New("not an upgrade request")
)

// statusOf are the codes that package protocol itself decides on.
var statusOf = map[protocol.Code]int{
	protocol.CodeInvalidModel: http.StatusUnprocessableEntity,
	protocol.CodeTooLarge:     http.StatusRequestEntityTooLarge,
	protocol.CodeUnknownType:  http.StatusBadRequest,
}

// explain finds what an error means to the outside.
func explain(err error) (outcome, *protocol.Error) {
	var refused *protocol.Error
	if errors.As(err, &refused) {
		status := statusOf[refused.Code]
		if status == 0 {
			status = http.StatusBadRequest
		}
		return outcome{code: refused.Code, status: status}, refused
	}
	found := unknown
	for _, o := range outcomes {
		if errors.Is(err, o.err) {
			found = o
			break
		}
	}
	var used *sessionstore.BudgetError
	if found.code == protocol.CodeBudgetExceeded && errors.As(err, &used) {
		found.retryAfter = used.Wait
	}
	return found, &protocol.Error{Code: found.code, Message: found.message, Recoverable: found.recoverable, RetryAfter: found.retryAfter}
}

// logError writes an error down once, at the edge where it ends.
func logError(ctx context.Context, log *slog.Logger, o outcome, err error, attrs ...any) {
	attrs = append(attrs, "code", string(o.code), "error", err.Error(), "error_type", errorType(err))
	if o.internal {
		attrs = append(attrs, "stack", string(debug.Stack()))
		log.ErrorContext(ctx, "request failed", attrs...)
		return
	}
	log.WarnContext(ctx, "request refused", attrs...)
}

// errorType names the innermost kind of an error for the log. Where several are wrapped the cause is the last.
func errorType(err error) string {
	for {
		next := errors.Unwrap(err)
		if many, ok := err.(interface{ Unwrap() []error }); ok {
			if errs := many.Unwrap(); len(errs) > 0 {
				next = errs[len(errs)-1]
			}
		}
		if next == nil {
			return typeName(err)
		}
		err = next
	}
}

// problem is an RFC 9457 answer with the protocol's error object inside.
type problem struct {
	Type      string `json:"type"`
	Title     string `json:"title"`
	Status    int    `json:"status"`
	Error     any    `json:"error"`
	SessionID string `json:"session_id,omitempty"`
}

// writeError answers an HTTP request with a problem.
func (s *Server) writeError(c echo.Context, err error) error {
	if errors.Is(err, context.Canceled) && c.Request().Context().Err() != nil {
		return nil //nolint:nilerr // the client has gone; there is nobody to tell, and nothing of ours has failed
	}
	var he *echo.HTTPError
	if errors.As(err, &he) {
		err = fromEcho(he)
	}
	o, e := explain(err)
	logError(c.Request().Context(), s.log, o, err, "component", "http", "route", c.Path(), "method", c.Request().Method,
		"request_id", c.Response().Header().Get(echo.HeaderXRequestID), "user_id", userOf(c))
	if c.Response().Committed {
		return nil
	}
	p := problem{Type: "about:blank", Title: e.Message, Status: o.status, Error: e.Object()}
	var active *sessionstore.ActiveError
	if errors.As(err, &active) {
		p.SessionID = active.SessionID
	}
	if e.RetryAfter > 0 {
		c.Response().Header().Set(echo.HeaderRetryAfter, seconds(e.RetryAfter))
	}
	if o.status == http.StatusUpgradeRequired {
		c.Response().Header().Set(echo.HeaderUpgrade, "websocket")
	}
	if o.status == http.StatusUnauthorized {
		c.Response().Header().Set(echo.HeaderWWWAuthenticate, "Bearer")
	}
	c.Response().Header().Set(echo.HeaderContentType, "application/problem+json")
	c.Response().WriteHeader(o.status)
	return encodeJSON(c.Response(), p)
}

func fromEcho(he *echo.HTTPError) error {
	switch he.Code {
	case http.StatusNotFound, http.StatusMethodNotAllowed:
		return errNotFound
	case http.StatusRequestEntityTooLarge:
		return &protocol.Error{Code: protocol.CodeTooLarge, Message: "The request is too large."}
	case http.StatusUnauthorized:
		return auth.ErrUnauthorized
	}
	if he.Code < http.StatusInternalServerError {
		return errBadRequest
	}
	return he
}
