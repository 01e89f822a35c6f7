package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/real-rm/chatbox/internal/rig"
)

// The order in which parts end: whoever depends on others before them.
const (
	endReplicas = iota
	endModel
	endS3
	endMongo
	endRedis
	endMail
	endFront
)

// A launcher starts the parts in order and ends them in the order above.
type launcher struct {
	options
	getenv   func(string) string
	root     string // of the main module
	state    *state
	front    net.Listener // taken first, so that a taken port is known at once
	backends []string     // host:port of each replica
	lateS3   bool         // S3 has to be built first, which would slow the start down

	outMu sync.Mutex // guards out
	out   io.Writer

	starting sync.WaitGroup // what may come up after the chat: FerretDB and S3
	serving  sync.WaitGroup // servers in this process; they end when they are stopped

	stopsMu sync.Mutex // guards stops; never held while one runs
	stops   [endFront + 1][]func()
}

// newLauncher takes the port and the state directory, and nothing else yet.
func newLauncher(ctx context.Context, o options, getenv func(string) string, out io.Writer) (*launcher, error) {
	root, err := rig.ModuleRoot()
	if err != nil {
		return nil, err
	}
	if _, err := exec.LookPath("go"); err != nil {
		return nil, errors.New("the go command is not on PATH; it builds the replicas")
	}
	if o.state == "" {
		o.state = filepath.Join(root, "dev", ".state")
	}
	var lc net.ListenConfig
	front, err := lc.Listen(ctx, "tcp", o.addr)
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, taken(o)
	}
	if err != nil {
		return nil, fmt.Errorf("listen on --addr %s: %w", o.addr, err)
	}
	st, err := openState(o.state)
	if err != nil {
		_ = front.Close()
		return nil, err
	}
	return &launcher{options: o, getenv: getenv, root: root, state: st, front: front, out: out}, nil
}

// taken says what has the address: the launcher of this clone itself, or another program.
func taken(o options) error {
	if heldState(o.state) {
		return fmt.Errorf("this launcher runs already, on %s: its links are in %s; end it, or start a second one with --addr 127.0.0.1:PORT --state DIRECTORY",
			o.state, filepath.Join(o.state, linksName))
	}
	return fmt.Errorf("%s is taken by another program; choose another with --addr 127.0.0.1:PORT", o.addr)
}

func (l *launcher) close() {
	_ = l.front.Close()
	l.state.close()
}

// run starts everything, waits for ctx to end, and ends everything.
func (l *launcher) run(ctx context.Context) error {
	began := time.Now()
	defer l.stopAll()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // before stopAll, so that what is still starting gives up
	if l.reset {
		if err := l.state.reset(); err != nil {
			return err
		}
		l.say("state", "forgotten (--reset): %s", l.state.dir)
	} else {
		l.say("state", "%s (survives a restart; --reset forgets it)", l.state.dir)
	}
	if err := l.start(ctx); err != nil {
		if ctx.Err() != nil {
			return nil // interrupted while starting
		}
		return err
	}
	l.say("", "\nUp after %s. Ctrl-C ends everything.", time.Since(began).Round(100*time.Millisecond))
	if l.lateS3 {
		l.starting.Go(func() { l.startS3(ctx) })
	}
	<-ctx.Done()
	l.say("", "\nEnding.")
	return nil
}

// start brings the chat up. What it does not need at once (MongoDB, while FerretDB is being built) follows.
func (l *launcher) start(ctx context.Context) error {
	l.serveFront()
	ferret := make(chan error, 1)
	mongo := loopback(rig.FreePort())
	l.starting.Go(func() { ferret <- l.startMongo(ctx, mongo) })

	chatbox, fake, err := l.build(ctx)
	if err != nil {
		return err
	}
	s3 := l.earlyS3(ctx)
	redis, err := l.startRedis(ctx)
	if err != nil {
		return err
	}
	llm, err := l.startLLM(ctx, fake)
	if err != nil {
		return err
	}
	if err := l.startMail(ctx); err != nil {
		return err
	}
	secret, err := l.configure(ctx, chatbox, redis, mongo, llm)
	if err != nil {
		return err
	}
	// FerretDB is either there by now, or its first build takes minutes: then the chat goes on without it, as it
	// would in production.
	select {
	case err := <-ferret:
		if err != nil {
			return err
		}
	case <-time.After(5 * time.Second):
		l.say("mongodb", "not yet; the chat starts without it, and what is said is stored as soon as it is there")
	case <-ctx.Done():
		return ctx.Err()
	}
	if err := l.startReplicas(ctx, chatbox); err != nil {
		return err
	}
	select { // its line belongs above the links, if that costs nothing
	case <-s3:
	case <-time.After(5 * time.Second):
	case <-ctx.Done():
		return ctx.Err()
	}
	return l.announce(secret)
}

// configure makes the secrets once and writes the settings that all replicas share.
func (l *launcher) configure(ctx context.Context, chatbox, redis, mongo, llm string) (secret []byte, err error) {
	if secret, err = l.state.once("jwt_secret", randomSecret); err != nil {
		return nil, err
	}
	keyset, err := l.state.once("keyset.json", func() ([]byte, error) {
		return exec.CommandContext(ctx, chatbox, "keys", "new").Output()
	})
	if err != nil {
		return nil, err
	}
	c := settings{redis: "redis://" + redis, mongo: "mongodb://" + mongo, secret: string(secret), keyset: strings.TrimSpace(string(keyset)), models: l.models(llm)}
	return secret, l.state.write("chatbox.toml", c.toml())
}

// models are the scripted model in the formats of all types of providers, after a real provider if the environment has
// a key for one. The key itself stays in the environment.
func (l *launcher) models(llm string) []model {
	models := []model{
		{"scripted", "Scripted", "openai", "http://" + llm + "/v1", scriptedKey, "scripted"},
		{"scripted-anthropic", "Scripted, as Anthropic", "anthropic", "http://" + llm + "/v1", scriptedKey, "scripted"},
		{"scripted-dify", "Scripted, as Dify", "dify", "http://" + llm + "/dify/v1", scriptedKey, "scripted"},
	}
	if l.getenv("OPENAI_API_KEY") == "" {
		l.say("model", "scripted, as OpenAI, Anthropic and Dify (set OPENAI_API_KEY for a real one); say !tokens 50, !slow 200ms, !error 429 or !echo to it")
		return models
	}
	endpoint, name := l.getenv("OPENAI_BASE_URL"), l.getenv("OPENAI_MODEL")
	if endpoint == "" {
		endpoint = "https://api.openai.com/v1"
	}
	if name == "" {
		name = "gpt-4o-mini"
	}
	l.say("model", "%s at %s, and the scripted ones", name, endpoint)
	return append([]model{{"openai", name, "openai", endpoint, "env:OPENAI_API_KEY", name}}, models...)
}

// announce prints the links, and writes them for scripts.
func (l *launcher) announce(secret []byte) error {
	all, err := makeLinks("http://"+l.front.Addr().String(), secret, time.Now())
	if err != nil {
		return err
	}
	if err := l.state.writeLinks(all); err != nil {
		return err
	}
	l.say("", "\nOpen one of these (two browsers or a private window for two users):")
	for _, u := range all.Users {
		l.say(u.Name, "%s", u.Link)
	}
	return nil
}

// serveFront answers on the address of --addr from the first moment, with 502 until a replica is there.
func (l *launcher) serveFront() {
	l.backends = make([]string, l.replicas)
	for i := range l.backends {
		l.backends[i] = loopback(rig.FreePort())
	}
	server := &http.Server{Handler: newProxy(l.backends), ReadHeaderTimeout: 10 * time.Second}
	l.serving.Go(func() { _ = server.Serve(l.front) })
	l.onStop(endFront, func() { _ = server.Close() })
}

// onStop says how to end a part that has started.
func (l *launcher) onStop(when int, f func()) {
	l.stopsMu.Lock()
	defer l.stopsMu.Unlock()
	l.stops[when] = append(l.stops[when], f)
}

// stopAll ends what was started. Parts of the same kind end at the same time.
func (l *launcher) stopAll() {
	l.starting.Wait() // after this nobody calls onStop
	for _, stops := range l.stops {
		var wg sync.WaitGroup
		for _, f := range stops {
			wg.Go(f)
		}
		wg.Wait()
	}
	l.serving.Wait()
}

// say prints one line about a part.
func (l *launcher) say(part, format string, args ...any) {
	l.outMu.Lock()
	defer l.outMu.Unlock()
	text := fmt.Sprintf(format, args...)
	if part == "" {
		_, _ = fmt.Fprintln(l.out, text)
		return
	}
	_, _ = fmt.Fprintf(l.out, "%-14s %s\n", part, text)
}

func loopback(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }
