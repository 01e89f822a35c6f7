// Command dev starts the whole of Chatbox on one machine that has nothing but Go: two replicas of the real binary behind
// a round-robin proxy without stickiness, Redis, MongoDB, a mail sink, a scripted model and an S3 server.
//
//	go run -C dev .
//
// It prints links with ready tokens and ends everything on Ctrl-C. What the parts remember is under dev/.state and
// survives a restart. Nothing here is ever part of the product.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	// After the first signal the default handling is back, so that a second Ctrl-C ends the launcher at once.
	context.AfterFunc(ctx, stop)
	if err := run(ctx, os.Args[1:], os.Getenv, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "dev:", err)
		os.Exit(1)
	}
}

// options are what the command line says.
type options struct {
	addr     string        // where the proxy listens
	replicas int           // how many copies of the binary run
	state    string        // directory of everything that survives a restart; empty: dev/.state
	reset    bool          // forget that state first
	s3       bool          // build and start the S3 server
	redis    string        // auto, server or mini
	delay    time.Duration // between two tokens of the scripted model
}

// run parses args, starts everything, and returns when ctx has ended and everything is down again. An error is one
// clear line for the person at the terminal.
func run(ctx context.Context, args []string, getenv func(string) string, out io.Writer) error {
	o, err := parse(args, out)
	if errors.Is(err, flag.ErrHelp) {
		return nil
	}
	if err != nil {
		return err
	}
	l, err := newLauncher(ctx, o, getenv, out)
	if err != nil {
		return err
	}
	defer l.close()
	return l.run(ctx)
}

func parse(args []string, out io.Writer) (options, error) {
	var o options
	flags := flag.NewFlagSet("dev", flag.ContinueOnError)
	flags.SetOutput(io.Discard) // an error is one line, and the help has an order of its own
	flags.StringVar(&o.addr, "addr", "127.0.0.1:8080", "`host:port` to open in the browser")
	flags.IntVar(&o.replicas, "replicas", 2, "`number` of replicas behind the proxy")
	flags.StringVar(&o.state, "state", "", "`directory` of everything that survives a restart (default dev/.state)")
	flags.BoolVar(&o.reset, "reset", false, "forget that state first: conversations, keys, tokens")
	flags.BoolVar(&o.s3, "s3", true, "build and start the S3 server; --s3=false leaves it out")
	flags.StringVar(&o.redis, "redis", "auto", "`which` Redis: server (redis-server on PATH), mini (in this process), or auto")
	flags.DurationVar(&o.delay, "delay", 15*time.Millisecond, "`time` between two tokens of the scripted model")
	err := flags.Parse(args)
	if errors.Is(err, flag.ErrHelp) {
		help(out, flags)
	}
	switch {
	case errors.Is(err, flag.ErrHelp):
		return o, err
	case err != nil:
		return o, fmt.Errorf("%w; see --help", err)
	case flags.NArg() > 0:
		return o, fmt.Errorf("unexpected argument %q; see --help", flags.Arg(0))
	case o.replicas < 1 || o.replicas > 16:
		return o, fmt.Errorf("--replicas %d: between 1 and 16", o.replicas)
	case o.redis != "auto" && o.redis != "server" && o.redis != "mini":
		return o, fmt.Errorf("--redis %q: auto, server or mini", o.redis)
	}
	if o.state == "" {
		return o, nil // newLauncher knows the clone
	}
	abs, err := filepath.Abs(o.state)
	if err != nil {
		return o, fmt.Errorf("resolve --state: %w", err)
	}
	o.state = abs
	return o, nil
}

// help prints what the launcher is and its flags, in the order in which people want them.
func help(out io.Writer, flags *flag.FlagSet) {
	_, _ = fmt.Fprint(out, `Runs the whole of Chatbox on this machine and prints links to try it.

  go run -C dev . [flags]

Nothing but Go is needed; a redis-server on PATH is used when there is one. With OPENAI_API_KEY set (and OPENAI_MODEL,
OPENAI_BASE_URL if wanted) the real model answers, and the scripted ones can be chosen in the page. The first start takes
about two minutes, because it compiles the parts.

`)
	for _, name := range []string{"addr", "replicas", "reset", "state", "redis", "s3", "delay"} {
		f := flags.Lookup(name)
		kind, usage := flag.UnquoteUsage(f)
		if f.DefValue != "" && f.DefValue != "false" {
			usage += " (default " + f.DefValue + ")"
		}
		_, _ = fmt.Fprintf(out, "  %-20s %s\n", "--"+name+" "+kind, usage)
	}
}
