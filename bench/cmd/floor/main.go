// Command floor serves the bare relay of package floor until it is interrupted.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"net/http/pprof"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/real-rm/chatbox/bench/floor"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "floor:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("floor", flag.ContinueOnError)
	addr := flags.String("addr", "127.0.0.1:8091", "address to listen on")
	profiles := flags.String("pprof", "", "address of profiles; empty: off")
	redisAddr := flags.String("redis", "127.0.0.1:6379", "address of Redis")
	if err := flags.Parse(args); err != nil {
		return err
	}
	client := redis.NewClient(&redis.Options{Addr: *redisAddr})
	defer func() { _ = client.Close() }()
	relay := floor.New(client)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()

	servers := []*http.Server{{Addr: *addr, Handler: relay, ReadHeaderTimeout: 10 * time.Second}}
	if *profiles != "" {
		mux := http.NewServeMux()
		mux.HandleFunc("/debug/pprof/", pprof.Index)
		mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
		servers = append(servers, &http.Server{Addr: *profiles, Handler: mux, ReadHeaderTimeout: 10 * time.Second})
	}
	done := make(chan error, len(servers)+1)
	var parts sync.WaitGroup
	parts.Go(func() { done <- relay.Run(ctx) })
	for _, s := range servers {
		parts.Go(func() { done <- s.ListenAndServe() })
	}
	var err error
	select {
	case <-ctx.Done():
	case err = <-done:
	}
	cancel()
	for _, s := range servers {
		_ = s.Close()
	}
	parts.Wait()
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}
