package auth

import (
	"errors"
	"fmt"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

// Claims are what Issue puts into a token.
type Claims struct {
	UserID  string        // required
	Name    string        // left out when empty
	Roles   []string      // left out when empty
	TTL     time.Duration // life of the token from now; required
	TokenID string        // jti; left out when empty
}

// Issue signs a token that this verifier accepts, for the command line, the dev launcher and tests. Production
// tokens come from the host application.
func (v *Verifier) Issue(c Claims) (string, error) {
	if !usableID(c.UserID) || c.UserID == "" {
		return "", fmt.Errorf("issue token: user id must be 1 to %d printable characters", maxUserRunes)
	}
	if c.TTL <= 0 {
		return "", errors.New("issue token: time to live must be positive")
	}
	now := v.opts.Now()
	user := v.opts.UserClaim
	if user == "" {
		user = "sub"
	}
	claims := jwt.MapClaims{
		"iat": now.Unix(),
		"exp": now.Add(c.TTL).Unix(),
		user:  c.UserID,
	}
	if c.Name != "" {
		claims[v.opts.NameClaim] = c.Name
	}
	if len(c.Roles) > 0 {
		claims[v.opts.RolesClaim] = c.Roles
	}
	if c.TokenID != "" {
		claims["jti"] = c.TokenID
	}
	if v.opts.Issuer != "" {
		claims["iss"] = v.opts.Issuer
	}
	if v.opts.Audience != "" {
		claims["aud"] = v.opts.Audience
	}
	token, err := jwt.NewWithClaims(v.method, claims).SignedString(v.opts.Secret)
	if err != nil {
		return "", fmt.Errorf("issue token: %w", err)
	}
	return token, nil
}
