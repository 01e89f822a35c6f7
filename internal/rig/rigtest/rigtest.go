// Package rigtest gives tests real servers. What a machine lacks is skipped with a message that says so; with
// CHATBOX_REQUIRE_SERVICES=1 in the environment it fails the test instead, so that CI cannot skip by accident.
package rigtest

import (
	"context"
	"os"
	"testing"
	"time"

	"github.com/real-rm/chatbox/internal/rig"
)

// buildTimeout bounds the first build of FerretDB on a cold cache.
const buildTimeout = 8 * time.Minute

// Require does nothing if err is nil. Else the named component is missing: the test is skipped, or fails where
// services are required.
func Require(t testing.TB, name string, err error) {
	t.Helper()
	if err == nil {
		return
	}
	if os.Getenv("CHATBOX_REQUIRE_SERVICES") == "1" {
		t.Fatalf("%s is required here: %v", name, err)
	}
	t.Skipf("skipped, %s is not available: %v", name, err)
}

// Redis starts a redis-server that lives as long as the test.
func Redis(t testing.TB) *rig.Proc {
	t.Helper()
	return RedisWith(t, rig.RedisOptions{})
}

// RedisWith is Redis with options.
func RedisWith(t testing.TB, o rig.RedisOptions) *rig.Proc {
	t.Helper()
	p, err := rig.StartRedis(t.Context(), t.TempDir(), o)
	Require(t, "redis-server", err)
	t.Cleanup(p.Kill)
	return p
}

// Ferret starts a FerretDB with an empty database that lives as long as the test. Its connection string is
// rig.FerretURI(p).
func Ferret(t testing.TB) *rig.Proc {
	t.Helper()
	p, err := rig.StartFerret(t.Context(), t.TempDir(), FerretBinary(t), 0)
	Require(t, "FerretDB", err)
	t.Cleanup(p.Kill)
	return p
}

// FerretBinary returns the path of the FerretDB program, for tests that stop and start it themselves.
func FerretBinary(t testing.TB) string {
	t.Helper()
	root, err := rig.ModuleRoot()
	Require(t, "FerretDB", err)
	ctx, cancel := context.WithTimeout(t.Context(), buildTimeout)
	defer cancel()
	bin, err := rig.FerretBinary(ctx, root, os.Stderr)
	Require(t, "FerretDB", err)
	return bin
}

// Nginx starts a balancer without sticky sessions before the upstreams (host:port each).
func Nginx(t testing.TB, upstreams ...string) *rig.Proc {
	t.Helper()
	p, err := rig.StartNginx(t.Context(), t.TempDir(), 0, upstreams)
	Require(t, "nginx", err)
	t.Cleanup(p.Kill)
	return p
}
