package server

import (
	"testing"

	"go.uber.org/goleak"
)

// Promise 7: when a connection closes, nothing of it remains.
func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }
