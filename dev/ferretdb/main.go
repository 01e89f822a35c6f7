// Command ferretdb is a MongoDB-compatible server in one process, for tests and for the dev launcher: FerretDB's
// SQLite handler on a directory. It is never part of the product.
//
// It is right for what the product does with MongoDB (inserts with a unique _id, one writer per document), and for
// little else: concurrent updates of one document lose writes, indexes are not used for reads.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/FerretDB/FerretDB/ferretdb"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdin, os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "ferretdb:", err)
		os.Exit(1)
	}
}

// run serves until ctx ends or, with -stdin, until stdin does. It writes errors to stderr and nothing else.
func run(ctx context.Context, args []string, stdin io.Reader, stderr io.Writer) error {
	flags := flag.NewFlagSet("ferretdb", flag.ContinueOnError)
	flags.SetOutput(stderr)
	addr := flags.String("addr", "127.0.0.1:27017", "`host:port` to listen on")
	dir := flags.String("dir", "", "`directory` of the SQLite files, made if absent")
	withStdin := flags.Bool("stdin", false, "exit when standard input ends, so that a parent that dies takes this process along")
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return nil
		}
		return err
	}
	if *dir == "" {
		return errors.New("-dir is missing")
	}
	abs, err := filepath.Abs(*dir)
	if err != nil {
		return fmt.Errorf("resolve -dir: %w", err)
	}
	if err := os.MkdirAll(abs, 0o700); err != nil {
		return fmt.Errorf("make data directory: %w", err)
	}

	f, err := ferretdb.New(&ferretdb.Config{
		Handler:   "sqlite",
		SQLiteURL: "file:" + abs + "/",
		Listener:  ferretdb.ListenerConfig{TCP: *addr},
		Logger:    slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: slog.LevelError})),
	})
	if err != nil {
		return fmt.Errorf("start on %s: %w", *addr, err)
	}

	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if *withStdin {
		// Nobody waits for this goroutine: a blocked read of standard input ends with the process.
		go func() {
			defer cancel()
			_, _ = io.Copy(io.Discard, stdin)
		}()
	}
	return f.Run(ctx)
}
