// Command llmfake serves the scripted LLM of package llmfake until it is interrupted. It prints one line,
// "listening on http://…/v1", as soon as requests are taken.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/real-rm/chatbox/internal/llmfake"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout, os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "llmfake:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	flags := flag.NewFlagSet("llmfake", flag.ContinueOnError)
	flags.SetOutput(stderr)
	addr := flags.String("addr", "127.0.0.1:8090", "address to listen on")
	key := flags.String("key", "", "key that requests must carry; empty: none")
	delay := flags.Duration("delay", 15*time.Millisecond, "time between two tokens")
	contextTokens := flags.Int64("context", 0, "what a prompt and its answer may cost, in tokens; 0: anything")
	cacheTokens := flags.Int64("cache", 0, "the shortest prompt that is cached, in tokens; 0: 1024")
	maxBody := flags.Int64("max-body", 0, "size limit of a request in bytes; 0: 32 MiB")
	verbose := flags.Bool("v", false, "log requests, without contents")
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return nil
		}
		return err
	}
	log := slog.New(slog.DiscardHandler)
	if *verbose {
		log = slog.New(slog.NewTextHandler(stderr, nil))
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", *addr)
	if err != nil {
		return err
	}
	serving, cancel := context.WithCancel(context.WithoutCancel(ctx)) // ends stalled answers on shutdown
	defer cancel()
	fake := llmfake.New(llmfake.Options{Key: *key, Delay: *delay, ContextTokens: *contextTokens, CacheTokens: *cacheTokens, MaxBody: *maxBody, Log: log})
	srv := &http.Server{
		Handler:           fake,
		ReadHeaderTimeout: 10 * time.Second,
		BaseContext:       func(net.Listener) context.Context { return serving },
	}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(l) }()
	if _, err := fmt.Fprintf(stdout, "listening on http://%s/v1\n", l.Addr()); err != nil {
		cancel()
		return errors.Join(err, srv.Close(), ignoreClosed(<-served))
	}
	select {
	case err := <-served:
		return err
	case <-ctx.Done():
	}
	cancel()
	fake.Close()
	end, done := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer done()
	if err := srv.Shutdown(end); err != nil {
		_ = srv.Close()
	}
	return ignoreClosed(<-served)
}

func ignoreClosed(err error) error {
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}
