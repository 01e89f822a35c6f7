// Command bench loads the product and, beside it, the floor, and prints how they compare. See README.md.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/real-rm/chatbox/bench/smoke"
)

var errIncorrect = errors.New("messages were lost, doubled, out of order or refused")

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout, os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	o := smoke.Options{Progress: stderr}
	if len(args) > 0 && (args[0] == "smoke" || args[0] == "tokens") {
		o.Tokens = args[0] == "tokens"
		args = args[1:]
	}
	flags := flag.NewFlagSet("bench smoke", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.IntVar(&o.Conns, "conns", 1000, "idle connections")
	flags.IntVar(&o.Sessions, "sessions", 200, "sessions of the relay rows, two sockets each")
	flags.IntVar(&o.Rate, "rate", 500, "messages a second")
	flags.DurationVar(&o.Duration, "duration", 10*time.Second, "of one measurement")
	flags.IntVar(&o.Rounds, "rounds", 3, "measurements of each row, in turns with the floor")
	flags.IntVar(&o.Streams, "streams", 50, "answers at a time, 50 chunks a second each")
	flags.IntVar(&o.Window, "window", 4, "messages under way for each session when saturated")
	flags.BoolVar(&o.AOF, "aof", false, "the product's Redis keeps an append-only file")
	flags.BoolVar(&o.NoDB, "no-db", false, "without the database: nothing is flushed")
	flags.StringVar(&o.Profiles, "profiles", "", "existing directory for CPU profiles of both systems")
	quick := flags.Bool("quick", false, "a run of half a minute that shows correctness and no figures to quote")
	limit := flags.Duration("limit", 15*time.Minute, "the whole run ends after this long")
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return nil
		}
		return err
	}
	if flags.NArg() > 0 {
		return fmt.Errorf("unknown argument %q; the commands are smoke, the default, and tokens", flags.Arg(0))
	}
	if *quick {
		o.Conns, o.Sessions, o.Rate, o.Duration, o.Rounds, o.Streams, o.Settle = 200, 50, 200, 2*time.Second, 1, 10, time.Second
	}
	ctx, cancel := context.WithTimeout(ctx, *limit)
	defer cancel()
	report, err := smoke.Run(ctx, o)
	if len(report.Rows) > 0 {
		err = errors.Join(err, report.Print(stdout))
	}
	if err == nil && report.Failed() {
		err = errIncorrect
	}
	return err
}
