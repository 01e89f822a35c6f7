package auth

import (
	"fmt"
	"maps"
	"slices"
	"time"
)

// Requirement is what an action asks of whoever does it. The zero value refuses everybody.
type Requirement int

// Requirements.
const (
	Nobody Requirement = iota // refused
	Public                    // no token needed
	User                      // any valid identity
	Admin                     // an identity with the admin role whose token has not expired
)

// Route names an HTTP route in a policy, by method and pattern as Echo has it.
func Route(method, pattern string) string { return method + " " + pattern }

// Frame names a frame from a user's socket in a policy.
func Frame(frameType string) string { return "frame " + frameType }

// AdminFrame names a frame from an admin's socket in a policy.
func AdminFrame(frameType string) string { return "admin frame " + frameType }

// Policy says for every action who may do it. An action that is not in it is refused. It does not change after
// NewPolicy and may be used concurrently.
type Policy struct {
	table  map[string]Requirement
	leeway time.Duration
	now    func() time.Time
}

// PolicyOptions are the settings of a policy.
type PolicyOptions struct {
	Table  map[string]Requirement // nil: DefaultTable()
	Leeway time.Duration          // beyond the expiry of an admin's token; default 30 s, negative: none
	Now    func() time.Time       // default time.Now
}

// NewPolicy returns a policy with a copy of the table.
func NewPolicy(opts PolicyOptions) *Policy {
	p := &Policy{table: maps.Clone(opts.Table), leeway: opts.Leeway, now: opts.Now}
	if opts.Table == nil {
		p.table = DefaultTable()
	}
	if p.leeway == 0 {
		p.leeway = defaultLeeway
	}
	p.leeway = max(p.leeway, 0)
	if p.now == nil {
		p.now = time.Now
	}
	return p
}

// Allow returns nil if id may do the action, ErrUnauthorized if there is no identity, ErrExpired (too) if an
// admin's token has expired since, and ErrForbidden otherwise. An expired user is not stopped here: their socket
// has its own timer, and must still be able to send a fresh token.
func (p *Policy) Allow(action string, id Identity) error {
	switch p.table[action] {
	case Public:
		return nil
	case User:
		if id.UserID == "" {
			return refuse("no identity")
		}
		return nil
	case Admin:
		switch {
		case id.UserID == "":
			return refuse("no identity")
		case !id.IsAdmin():
			return fmt.Errorf("%s needs the admin role: %w", action, ErrForbidden)
		case !id.Expires.IsZero() && p.now().After(id.Expires.Add(p.leeway)):
			return &refusal{reason: ErrExpired.Error(), expired: true}
		}
		return nil
	}
	return fmt.Errorf("no policy for %q: %w", action, ErrForbidden)
}

// Requirement returns what an action asks; Nobody for unknown ones.
func (p *Policy) Requirement(action string) Requirement { return p.table[action] }

// Actions returns the known actions, sorted, so that a test can compare them with what the server serves.
func (p *Policy) Actions() []string { return slices.Sorted(maps.Keys(p.table)) }

// DefaultTable is the policy of Chatbox: every route of its HTTP interface and every frame type of its protocol.
// The caller owns the map and may add to it.
func DefaultTable() map[string]Requirement {
	t := map[string]Requirement{}
	for need, actions := range map[Requirement][]string{
		Public: {
			"GET /chat", "GET /chat/", "GET /chat/*", // pages and their files; what needs an identity has a route of its own
			"GET /chat/admin", "GET /chat/admin/", "GET /chat/healthz", "GET /chat/readyz",
		},
		User: {
			"GET /chat/ws", "GET /chat/me", "GET /chat/models",
			"GET /chat/sessions", "POST /chat/sessions", "GET /chat/sessions/:id", "GET /chat/sessions/:id/messages",
			"POST /chat/sessions/:id/end", "POST /chat/sessions/:id/activate",
			"POST /chat/files", "GET /chat/files/:id", "DELETE /chat/files/:id", "* /chat/uploads",
		},
		Admin: {
			"GET /chat/admin/ws", "GET /chat/admin/sessions", "GET /chat/admin/sessions/:id",
			"GET /chat/admin/sessions/:id/messages", "GET /chat/admin/metrics",
			"POST /chat/admin/takeover/:sessionID", "POST /chat/admin/release/:sessionID", "GET /chat/admin/audit",
			"GET /chat/admin/users/:id/export", "DELETE /chat/admin/users/:id",
		},
	} {
		for _, a := range actions {
			t[a] = need
		}
	}
	for _, f := range []string{
		"user_message", "file_upload", "voice_message", "model_select", "help_request", "leave_message",
		"typing_indicator", "stop", "regenerate", "continue", "retry", "ping", "auth",
	} {
		t[Frame(f)] = User
	}
	for _, f := range []string{
		"user_message", "file_upload", "voice_message", "admin_join", "admin_leave", "typing_indicator",
		"watch", "unwatch",
	} {
		t[AdminFrame(f)] = Admin
	}
	// These keep an admin's socket alive while its token is renewed.
	t[AdminFrame("ping")] = User
	t[AdminFrame("auth")] = User
	return t
}
