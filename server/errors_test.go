package server

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/labstack/echo/v4"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/real-rm/chatbox/hub"
	"github.com/real-rm/chatbox/server/auth"
	"github.com/real-rm/chatbox/server/protocol"
	"github.com/real-rm/chatbox/sessionstore"
	"github.com/real-rm/chatbox/sessionstore/archive"
)

// inner is text that must never leave the replica.
const inner = "dial tcp 10.1.2.3:6379: password=hunter2"

// meaning is a row of the table as the protocol has it.
type meaning struct {
	err         error
	status      int
	code        protocol.Code
	recoverable bool
	retry       time.Duration
	close       hub.Code
	internal    bool
}

// meanings is written down a second time on purpose: clients act upon these values.
var meanings = map[string]meaning{
	"expired token":      {auth.ErrExpired, 401, "TOKEN_EXPIRED", false, 0, 4101, false},
	"no valid token":     {auth.ErrUnauthorized, 401, "UNAUTHORIZED", false, 0, 4401, false},
	"not allowed":        {auth.ErrForbidden, 403, "FORBIDDEN", false, 0, 0, false},
	"too many sockets":   {errConnectionLimit, 503, "CONNECTION_LIMIT", true, 5 * time.Second, 1013, false},
	"too many of one":    {errTooMany, 429, "CONNECTION_LIMIT", false, 0, 4429, false},
	"elsewhere by now":   {errMoved, 503, "STORE_UNAVAILABLE", true, time.Second, 4001, false},
	"going away":         {errDraining, 503, "CONNECTION_LIMIT", true, time.Second, 1012, false},
	"too fast":           {errRateLimited, 429, "RATE_LIMITED", true, time.Second, 0, false},
	"bad request":        {errBadRequest, 400, "BAD_FRAME", false, 0, 0, false},
	"no upgrade":         {errNoUpgrade, 426, "BAD_FRAME", false, 0, 0, false},
	"foreign cursor":     {archive.ErrCursor, 400, "BAD_FRAME", false, 0, 0, false},
	"absent":             {errNotFound, 404, "NOT_FOUND", false, 0, 0, false},
	"another is active":  {&sessionstore.ActiveError{SessionID: "p01-x"}, 409, "SESSION_ACTIVE", false, 0, 0, false},
	"assisted":           {sessionstore.ErrAssisted, 409, "SESSION_ASSISTED", false, 0, 0, false},
	"ended":              {sessionstore.ErrEnded, 409, "SESSION_ENDED", false, 0, 4410, false},
	"not in redis":       {sessionstore.ErrNotFound, 503, "STORE_UNAVAILABLE", true, time.Second, 4001, false},
	"redis is full":      {sessionstore.ErrFull, 503, "STORAGE_FULL", true, 5 * time.Second, 0, true},
	"no tokens left":     {&sessionstore.BudgetError{Wait: 3 * time.Hour}, 429, "BUDGET_EXCEEDED", true, 3 * time.Hour, 0, false},
	"crowded":            {errCrowded, 503, "STORAGE_FULL", true, 5 * time.Second, 0, false},
	"redis is away":      {sessionstore.ErrAway, 503, "STORE_UNAVAILABLE", true, time.Second, 0, true},
	"mongodb is away":    {sessionstore.ErrArchive, 503, "STORE_UNAVAILABLE", true, 2 * time.Second, 0, true},
	"took too long":      {context.DeadlineExceeded, 503, "STORE_UNAVAILABLE", true, time.Second, 0, true},
	"a mistake of ours":  {errors.New("nil pointer"), 500, "INTERNAL", true, time.Second, 0, true},
	"cannot be unsealed": {sessionstore.ErrUnsealed, 500, "INTERNAL", true, time.Second, 0, true},
	"unknown model":      {&protocol.Error{Code: protocol.CodeInvalidModel, Message: "m"}, 422, "INVALID_MODEL", false, 0, 0, false},
	"too large":          {&protocol.Error{Code: protocol.CodeTooLarge, Message: "m"}, 413, "TOO_LARGE", false, 0, 0, false},
	"unknown type":       {&protocol.Error{Code: protocol.CodeUnknownType, Message: "m"}, 400, "UNKNOWN_TYPE", false, 0, 0, false},
	"missing field":      {&protocol.Error{Code: protocol.CodeMissingField, Message: "m"}, 400, "MISSING_FIELD", false, 0, 0, false},
}

// Every row of the table is written down above.
func TestOutcomes_areAllKnown(t *testing.T) {
	for _, o := range outcomes {
		found := false
		for _, m := range meanings {
			found = found || errors.Is(m.err, o.err)
		}
		assert.True(t, found, o.err)
		assert.NotEmpty(t, o.message, o.err)
	}
}

// Feature: chat-application-websocket, Property 33 (Promise 33): every error reaches the client with code, message,
// recoverable flag and retry_after. Promise 42: internal text does not. Promises 35, 36: it is logged once, with its
// type, and with a stack if it is ours.
func TestProblem_ofEveryKindOfError(t *testing.T) {
	for name, m := range meanings {
		t.Run(name, func(t *testing.T) {
			r := newReplica(t)
			r.live.ActiveFn = func(context.Context, string) (sessionstore.Session, bool, error) {
				return sessionstore.Session{}, false, fmt.Errorf("%s: %w", inner, m.err)
			}
			rec := r.do(t, "ann", http.MethodGet, "/chat/sessions")
			body := rec.Body.String()
			p := refused(t, rec, m.status, m.code)
			assert.Equal(t, "about:blank", p.Type)
			assert.NotEmpty(t, p.Title)
			assert.Equal(t, m.recoverable, p.Error.Recoverable)
			assert.Equal(t, m.retry.Milliseconds(), p.Error.RetryAfter)
			lacks(t, body, "10.1.2.3", "hunter2", "goroutine", ".go:")
			if m.retry > 0 {
				assert.Equal(t, strconv.Itoa(int(m.retry.Seconds())), rec.Header().Get(echo.HeaderRetryAfter))
			} else {
				assert.Empty(t, rec.Header().Get(echo.HeaderRetryAfter))
			}

			lines := r.logs.lines(t, "")
			require.Len(t, lines, 1)
			line := lines[0]
			assert.Equal(t, string(m.code), line["code"])
			assert.Contains(t, line["error"], inner)
			assert.NotEmpty(t, line["error_type"])
			assert.Equal(t, "http", line["component"])
			assert.Equal(t, "ann", line["user_id"])
			assert.Equal(t, "/chat/sessions", line["route"])
			assert.Equal(t, http.MethodGet, line["method"])
			assert.Equal(t, rec.Header().Get(echo.HeaderXRequestID), line["request_id"])
			if m.internal {
				assert.Equal(t, "ERROR", line["level"])
				assert.Contains(t, line["stack"], "server.(*Server).writeError")
			} else {
				assert.Equal(t, "WARN", line["level"])
				assert.NotContains(t, line, "stack")
			}
		})
	}
}

// Promise 34: after a fatal error the client gets the error first, then a clean close; after another it lives on.
func TestErrorFrame_ofEveryKindOfError(t *testing.T) {
	for name, m := range meanings {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(r *replica) {
				t := r.t
				s := r.dial(t, "ann")
				s.take()
				r.live.set(func() {
					r.live.AppendFn = func(context.Context, sessionstore.Append) (sessionstore.Appended, error) {
						return sessionstore.Appended{}, fmt.Errorf("%s: %w", inner, m.err)
					}
				})
				before := len(r.logs.lines(t, ""))
				id := s.say("my secret question")
				f := s.one()
				require.NotNil(t, f.Error, f.raw)
				assert.Equal(t, id, f.MessageID)
				assert.Equal(t, m.code, f.Error.Code)
				assert.Equal(t, m.recoverable, f.Error.Recoverable)
				assert.Equal(t, m.retry.Milliseconds(), f.Error.RetryAfter)
				assert.NotEmpty(t, f.Error.Message)
				lacks(t, f.raw, "10.1.2.3", "hunter2")
				assert.Equal(t, m.close, s.code())

				line := r.logs.lines(t, "")[before]
				assert.Equal(t, "ws", line["component"])
				assert.Equal(t, "user_message", line["frame_type"])
				assert.Equal(t, id, line["message_id"])
				assert.Equal(t, f.SessionID, line["session_id"])
				assert.Equal(t, m.internal, line["stack"] != nil)
				// Promise 37: never contents or secrets.
				lacks(t, r.logs.String(), "my secret question", "eyJ")
				if m.close == 0 {
					s.send(`{"type":"ping"}`)
					assert.Equal(t, "pong", s.names())
					s.leave()
				}
			})
		})
	}
}

// The table in docs/protocol.md is this one.
func TestProtocolPage_hasEveryCodeWithItsStatus(t *testing.T) {
	page, err := os.ReadFile("../docs/protocol.md")
	require.NoError(t, err)
	_, table, found := strings.Cut(string(page), "## Error codes")
	require.True(t, found)
	type row struct {
		status      int
		recoverable bool
	}
	rows := map[protocol.Code][]row{} // one for each status that a code comes with
	for _, m := range regexp.MustCompile("(?m)^\\| `([A-Z_]+)` \\| ([0-9–]+) \\| (yes|no|–) \\|").FindAllStringSubmatch(table, -1) {
		status, _ := strconv.Atoi(m[2])
		code := protocol.Code(m[1])
		rows[code] = append(rows[code], row{status, m[3] == "yes"})
	}
	for name, m := range meanings {
		got, found := rows[m.code]
		require.True(t, found, "%s: %s is not in the page", name, m.code)
		if m.status != http.StatusUpgradeRequired { // BAD_FRAME of the one route that wants an upgrade
			assert.Contains(t, got, row{m.status, m.recoverable}, "%s: %s", name, m.code)
		}
	}
}

// Errors of Echo itself, and of what the host application mounts around it, look like ours.
func TestProblem_ofEchosErrors(t *testing.T) {
	for name, c := range map[string]struct {
		err    error
		status int
		code   protocol.Code
	}{
		"no route":         {echo.ErrNotFound, 404, "NOT_FOUND"},
		"no method":        {echo.ErrMethodNotAllowed, 404, "NOT_FOUND"},
		"body too large":   {echo.ErrStatusRequestEntityTooLarge, 413, "TOO_LARGE"},
		"no token":         {echo.ErrUnauthorized, 401, "UNAUTHORIZED"},
		"any other of 4xx": {echo.NewHTTPError(http.StatusTeapot, inner), 400, "BAD_FRAME"},
		"any of 5xx":       {echo.NewHTTPError(http.StatusBadGateway, inner), 500, "INTERNAL"},
	} {
		t.Run(name, func(t *testing.T) {
			r := newReplica(t)
			rec := r.handle(t, func(echo.Context) error { return c.err })
			lacks(t, rec.Body.String(), "hunter2")
			refused(t, rec, c.status, c.code)
			if c.status == http.StatusUnauthorized {
				assert.Equal(t, "Bearer", rec.Header().Get(echo.HeaderWWWAuthenticate))
			}
		})
	}
}

// handle runs a handler of ours behind the middleware that all have.
func (r *replica) handle(t *testing.T, h echo.HandlerFunc) *httptest.ResponseRecorder {
	t.Helper()
	rec := httptest.NewRecorder()
	c := r.echo.NewContext(httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/chat/me", nil), rec)
	require.NoError(t, r.requestID(r.problems(h))(c))
	return rec
}

// A panic costs one request, not the replica, and tells nothing to the outside.
func TestProblem_ofAPanic(t *testing.T) {
	r := newReplica(t)
	rec := r.handle(t, func(echo.Context) error { panic(inner) })
	lacks(t, rec.Body.String(), "hunter2", "panic")
	refused(t, rec, http.StatusInternalServerError, protocol.CodeInternal)
	lines := r.logs.lines(t, "request failed")
	require.Len(t, lines, 1)
	assert.Contains(t, lines[0]["error"], "hunter2")
	assert.Contains(t, lines[0]["stack"], "TestProblem_ofAPanic", "the stack shows who panicked")
}

// What net/http understands as "cut the connection" is not ours to answer.
func TestProblem_leavesAnAbortedResponseToTheServer(t *testing.T) {
	r := newReplica(t)
	require.PanicsWithValue(t, http.ErrAbortHandler, func() {
		r.handle(t, func(echo.Context) error { panic(http.ErrAbortHandler) })
	})
	assert.Empty(t, r.logs.lines(t, "request failed"))
}

// An error after the answer has begun is logged, and leaves the answer as it is.
func TestProblem_afterTheAnswerHasBegunIsOnlyLogged(t *testing.T) {
	r := newReplica(t)
	rec := r.handle(t, func(c echo.Context) error {
		require.NoError(t, c.String(http.StatusOK, "half of it"))
		return sessionstore.ErrAway
	})
	assert.Equal(t, http.StatusOK, rec.Code)
	assert.Equal(t, "half of it", rec.Body.String())
	assert.Len(t, r.logs.lines(t, "request failed"), 1)
}

// A client that hangs up is no failure of ours: nobody is woken up, and there is nobody to answer.
func TestProblem_ofAClientThatHasGoneIsNoFailure(t *testing.T) {
	r := newReplica(t)
	ctx, cancel := context.WithCancel(t.Context())
	rec := httptest.NewRecorder()
	c := r.echo.NewContext(httptest.NewRequestWithContext(ctx, http.MethodGet, "/chat/me", nil), rec)
	err := r.problems(func(echo.Context) error {
		cancel()
		return fmt.Errorf("%w: %w", sessionstore.ErrAway, context.Canceled)
	})(c)
	require.NoError(t, err)
	assert.Empty(t, r.logs.lines(t, "request failed"))
	assert.Empty(t, rec.Body.String())
}

type typedError struct{}

func (*typedError) Error() string { return "typed" }

// Promise 36: errors name their type, also below joined and wrapped ones.
func TestErrorType_isThatOfTheCause(t *testing.T) {
	const want = "*server.typedError"
	assert.Equal(t, want, errorType(&typedError{}))
	assert.Equal(t, want, errorType(fmt.Errorf("read: %w", &typedError{})))
	assert.Equal(t, want, errorType(fmt.Errorf("ping: %w: %w", sessionstore.ErrAway, &typedError{})))
	assert.Equal(t, want, errorType(errors.Join(sessionstore.ErrAway, fmt.Errorf("close: %w", &typedError{}))))
}

// broken is a response writer whose client has gone.
type broken struct{ http.ResponseWriter }

func (broken) Write([]byte) (int, error) { return 0, &typedError{} }

// A problem that cannot be written is returned, not swallowed.
func TestProblem_thatCannotBeWrittenIsReturned(t *testing.T) {
	r := newReplica(t)
	c := r.echo.NewContext(httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/chat/me", nil), broken{httptest.NewRecorder()})
	var typed *typedError
	require.ErrorAs(t, r.writeError(c, errNotFound), &typed)
}
