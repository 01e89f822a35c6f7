package live

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync/atomic"

	"github.com/redis/go-redis/v9"

	"github.com/real-rm/chatbox/sessionstore"
)

//go:embed lua/*.lua
var sources embed.FS

// script is one Lua file with what it is joined to.
type script struct {
	name  string
	text  string
	plain *redis.Script
	// reserve, if not nil, is the same script with the right to run when Redis is full: what ends, renews or
	// finishes something must not fail for the memory that it is about to free.
	reserve *redis.Script
	durable bool // it writes durable events, see Options.Wait
}

// Parts of a script that come before its own file.
const (
	onlyPrelude = "prelude"
	withEvent   = "prelude event"      // for scripts that write ordinary events
	withLife    = "prelude event life" // for scripts that begin or end answers, holds and sessions
)

// loadScript reads lua/<name>.lua.
func loadScript(name, parts string, reserve bool) (*script, error) {
	var text strings.Builder
	for _, file := range append(strings.Fields(parts), name) {
		src, err := sources.ReadFile("lua/" + file + ".lua")
		if err != nil {
			return nil, fmt.Errorf("script %s: %w", name, err)
		}
		text.WriteString(constants.Replace(string(stripComments(src))))
	}
	sc := &script{name: name, text: text.String(), plain: redis.NewScript(text.String())}
	if reserve {
		sc.reserve = redis.NewScript(reserveHeader + text.String())
	}
	return sc, nil
}

// constants are the numbers that scripts and Go must agree on, by the names they have in Lua.
var constants = strings.NewReplacer("OUTAGE", strconv.FormatInt(outage.Milliseconds(), 10))

const reserveHeader = "#!lua flags=allow-oom\n"

// stripComments drops lines that are only a comment: scripts travel and are hashed as text.
func stripComments(src []byte) []byte {
	var b strings.Builder
	for line := range strings.Lines(string(src)) {
		if t := strings.TrimSpace(line); t != "" && !strings.HasPrefix(t, "--") {
			b.WriteString(line)
		}
	}
	return []byte(b.String())
}

// scripts are the scripts of the methods of Store.
type scripts struct {
	append, publish, open, touch, gone, read, restore, rebuild         *script
	acquire, book, budget, renew, chunk, final, release, stop, readmit *script
	cut, running, settle, expire, hold, leave, activate                *script
}

func loadScripts() (scripts, error) {
	var sc scripts
	var errs []error
	for _, l := range []struct {
		to      **script
		name    string
		parts   string
		reserve bool
	}{
		{&sc.append, "append", withEvent, false},
		{&sc.publish, "publish", onlyPrelude, false},
		{&sc.open, "open", withLife, true},
		{&sc.touch, "touch", onlyPrelude, true},
		{&sc.gone, "gone", onlyPrelude, true},
		{&sc.read, "read", withEvent, true}, // writes an epoch at most
		{&sc.restore, "restore", withEvent, true},
		{&sc.rebuild, "rebuild", withLife, true},
		{&sc.acquire, "acquire", withLife, true},
		{&sc.book, "book", onlyPrelude, true},
		{&sc.budget, "budget", onlyPrelude, true},
		{&sc.renew, "renew", onlyPrelude, true},
		{&sc.chunk, "chunk", onlyPrelude, false},
		{&sc.final, "final", withLife, true},
		{&sc.release, "release", onlyPrelude, true},
		{&sc.stop, "stop", onlyPrelude, true},
		{&sc.readmit, "readmit", withLife, true},
		{&sc.cut, "cut", withLife, true},
		{&sc.running, "running", onlyPrelude, true},
		{&sc.settle, "settle", withLife, true},
		{&sc.expire, "expire", withLife, true},
		{&sc.hold, "hold", onlyPrelude, true},
		{&sc.leave, "leave", withLife, true},
		{&sc.activate, "activate", withLife, true},
	} {
		var err error
		*l.to, err = loadScript(l.name, l.parts, l.reserve)
		errs = append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		return sc, err
	}
	for _, d := range []*script{sc.append, sc.final, sc.cut, sc.settle, sc.leave, sc.readmit, sc.activate} {
		d.durable = true
	}
	return sc, nil
}

// reserve remembers whether this Redis knows the header of scripts that may run when it is full.
type reserve struct{ state atomic.Int32 }

const (
	reserveUnknown int32 = iota
	reserveYes
	reserveNo // miniredis
)

// usable picks the form of the script that this Redis can run. It asks Redis once.
func (s *Store) usable(ctx context.Context, sc *script) (*redis.Script, error) {
	if sc.reserve == nil {
		return sc.plain, nil
	}
	switch s.oom.state.Load() {
	case reserveYes:
		return sc.reserve, nil
	case reserveNo:
		return sc.plain, nil
	}
	// With a key, because without one a cluster's client asks all nodes, replicas too.
	err := s.client.Eval(ctx, reserveHeader+"return 1", []string{s.parts[0].inst()}).Err()
	var refused redis.Error
	switch {
	case err == nil:
		s.oom.state.Store(reserveYes)
		return sc.reserve, nil
	case errors.As(err, &refused) && strings.HasPrefix(err.Error(), "ERR"):
		s.oom.state.Store(reserveNo)
		return sc.plain, nil
	default:
		return nil, redisError(err)
	}
}

// run runs a script. Codes that stand for errors come back as those, with the reply beside them.
func (s *Store) run(ctx context.Context, sc *script, keys []string, args ...any) (reply, error) {
	form, err := s.usable(ctx, sc)
	if err != nil {
		return nil, err
	}
	if s.pl.acks == nil || !sc.durable {
		v, err := form.Run(ctx, s.client, keys, args...).Result()
		return checked(sc, v, err)
	}
	call := &invocation{script: form, keys: keys, args: args, durable: true}
	s.pl.acks.invoke(ctx, s.client, []*invocation{call})
	return checked(sc, call.val, call.err)
}

// runSoon is run for the frequent scripts: calls of many goroutines share pipelines.
func (s *Store) runSoon(ctx context.Context, sc *script, keys []string, args ...any) (reply, error) {
	form, err := s.usable(ctx, sc)
	if err != nil {
		return nil, err
	}
	v, err := s.pl.batch.do(ctx, invocation{script: form, keys: keys, args: args, durable: sc.durable})
	return checked(sc, v, err)
}

// checked turns the outcome of a script into a reply or an error.
func checked(sc *script, v any, err error) (reply, error) {
	if err != nil {
		return nil, redisError(err)
	}
	list, ok := v.([]any)
	if !ok || len(list) == 0 {
		return nil, fmt.Errorf("script %s: unexpected reply", sc.name)
	}
	r := reply(list)
	return r, codeError(r.code())
}

// codeError maps a script's code to the error it stands for, nil for the others.
func codeError(code string) error {
	switch code {
	case "NOTFOUND":
		return sessionstore.ErrNotFound
	case "ENDED":
		return sessionstore.ErrEnded
	case "FENCED":
		return sessionstore.ErrFenced
	case "HELD":
		return sessionstore.ErrHeld
	case "NOTOWED":
		return sessionstore.ErrNotOwed
	case "BUDGET":
		return sessionstore.ErrBudget
	case "STOP":
		return sessionstore.ErrStopped
	case "GAP":
		return sessionstore.ErrGap
	case "ASSISTED":
		return sessionstore.ErrAssisted
	case "NOTHELD":
		return sessionstore.ErrNotHolder
	default:
		return nil
	}
}

// transient are the beginnings of errors by which Redis says that it does not work for now.
var transient = []string{"LOADING", "READONLY", "CLUSTERDOWN", "MASTERDOWN", "TRYAGAIN", "NOREPLICAS", "MISCONF",
	"BUSY", "UNBLOCKED", "MOVED", "ASK"}

// redisError says what an error of the client means to a caller: ErrFull, ErrAway, or a defect of ours.
func redisError(err error) error {
	if err == nil || errors.Is(err, redis.Nil) {
		return err
	}
	var refused redis.Error
	if !errors.As(err, &refused) {
		return fmt.Errorf("%w: %w", sessionstore.ErrAway, err)
	}
	text := err.Error()
	if strings.HasPrefix(text, "OOM ") || strings.Contains(text, "-OOM ") {
		return sessionstore.ErrFull
	}
	for _, t := range transient {
		if strings.HasPrefix(text, t) {
			return fmt.Errorf("%w: %w", sessionstore.ErrAway, err)
		}
	}
	return err
}

// reply is what a script returns: a code, then what the script's head says.
type reply []any

func (r reply) code() string { return r.str(0) }

func (r reply) str(i int) string {
	if i < len(r) {
		if s, ok := r[i].(string); ok {
			return s
		}
	}
	return ""
}

func (r reply) num(i int) int64 {
	n, _ := strconv.ParseInt(r.str(i), 10, 64)
	return n
}

func (r reply) list(i int) reply {
	if i < len(r) {
		if l, ok := r[i].([]any); ok {
			return l
		}
	}
	return nil
}

// fields reads a flat list of names and values, as HGETALL gives.
func (r reply) fields() map[string]string {
	m := make(map[string]string, len(r)/2)
	for i := 0; i+1 < len(r); i += 2 {
		m[r.str(i)] = r.str(i + 1)
	}
	return m
}
