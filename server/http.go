package server

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"reflect"
	"regexp"
	"strconv"
	"time"

	"github.com/labstack/echo/v4"

	"github.com/real-rm/chatbox/server/auth"
)

// identityKey is where a request's identity is kept.
const identityKey = "chatbox.identity"

// viaKey is where the way is kept by which a request's token came.
const viaKey = "chatbox.via"

// requestIDForm is what an id given by a proxy must look like to be taken over into logs.
var requestIDForm = regexp.MustCompile(`^[A-Za-z0-9._-]{1,64}$`)

// requestID gives every request an id, the proxy's if it has one.
func (s *Server) requestID(next echo.HandlerFunc) echo.HandlerFunc {
	return func(c echo.Context) error {
		id := c.Request().Header.Get(echo.HeaderXRequestID)
		if !requestIDForm.MatchString(id) {
			id = newID()
		}
		c.Response().Header().Set(echo.HeaderXRequestID, id)
		return next(c)
	}
}

// problems turns errors and panics of handlers into problem details, so that the service answers alike in
// whatever application it is mounted.
func (s *Server) problems(next echo.HandlerFunc) echo.HandlerFunc {
	return func(c echo.Context) (err error) {
		defer func() {
			switch p := recover(); p {
			case nil:
			case http.ErrAbortHandler:
				panic(p) // net/http cuts the connection
			default:
				err = s.writeError(c, fmt.Errorf("panic: %v", p))
			}
		}()
		if err := next(c); err != nil {
			return s.writeError(c, err)
		}
		return nil
	}
}

// allow checks the policy of a route, and the token where the route is not public, before the handler runs. A
// route that the policy does not know is refused.
func (s *Server) allow(next echo.HandlerFunc) echo.HandlerFunc {
	return func(c echo.Context) error {
		method := c.Request().Method
		if method == http.MethodHead {
			method = http.MethodGet
		}
		action := auth.Route(method, c.Path())
		if s.deps.Policy.Requirement(action) == auth.Public {
			return next(c)
		}
		id, via, err := s.identify(c.Request())
		if err != nil {
			return err
		}
		c.Set(identityKey, id)
		c.Set(viaKey, via)
		if err := s.deps.Policy.Allow(action, id); err != nil {
			return err
		}
		c.Response().Header().Set(echo.HeaderCacheControl, "no-store")
		return next(c)
	}
}

// identity returns who makes the request; allow has put it there.
func identity(c echo.Context) auth.Identity {
	id, _ := c.Get(identityKey).(auth.Identity)
	return id
}

func userOf(c echo.Context) string { return identity(c).UserID }

func encodeJSON(w io.Writer, v any) error {
	if err := json.NewEncoder(w).Encode(v); err != nil {
		return fmt.Errorf("write response: %w", err)
	}
	return nil
}

// seconds formats a duration for Retry-After, rounded up.
func seconds(d time.Duration) string {
	return strconv.Itoa(int((d + time.Second - 1) / time.Second))
}

func typeName(err error) string { return reflect.TypeOf(err).String() }
