// Package auth turns a token into an identity and says what an identity may do.
//
// A token is accepted if and only if it is signed with the configured key by the configured algorithm, has not
// expired, is not used before its time, and names a user; issuer and audience are checked where configured. Key
// and algorithm come from the configuration only, never from the token. Every refusal is ErrUnauthorized, one
// for expiry is ErrExpired as well; no error holds any part of a token.
//
// Policy is the one table of who may call which route and send which frame; what is not in it is refused.
//
// Nothing here does I/O or keeps state: all functions and methods may be called concurrently, and an Identity is
// a plain value that stays what it was when its token was verified.
package auth

import (
	"errors"
	"slices"
	"time"
)

// Errors. All are matched with errors.Is.
var (
	ErrUnauthorized = errors.New("unauthorized")     // no token, or not a valid one
	ErrExpired      = errors.New("token is expired") // always together with ErrUnauthorized
	ErrForbidden    = errors.New("forbidden")        // a valid identity that may not do this
)

// DefaultAdminRole is the role that makes an admin unless another is configured.
const DefaultAdminRole = "admin"

// Identity is who a token speaks for.
type Identity struct {
	UserID  string
	Name    string // for display, without control characters; empty when the token has none
	Roles   []string
	Expires time.Time // zero: does not expire (never so for identities out of tokens)

	adminRole string // empty: DefaultAdminRole
}

// IsAdmin says whether the identity has the admin role.
func (id Identity) IsAdmin() bool {
	role := id.adminRole
	if role == "" {
		role = DefaultAdminRole
	}
	return slices.Contains(id.Roles, role)
}

// refusal is ErrUnauthorized with a reason for logs. Reasons are constants of this package.
type refusal struct {
	reason  string
	expired bool
}

func (r *refusal) Error() string { return "unauthorized: " + r.reason }

func (r *refusal) Is(target error) bool {
	return target == ErrUnauthorized || r.expired && target == ErrExpired
}

func refuse(reason string) error { return &refusal{reason: reason} }
