package main

import (
	"context"
	"fmt"
	"log/slog"
	"strings"

	"github.com/redis/go-redis/v9"

	"github.com/real-rm/chatbox/internal/cli"
	"github.com/real-rm/chatbox/server/config"
	"github.com/real-rm/chatbox/sessionstore/live"
)

// letters are the dead letters of the Redis that the settings name.
type letters struct {
	client redis.UniversalClient
	store  *live.Store
}

// openLetters connects on first use, like a replica, but takes no part in the cluster.
func openLetters(s *config.Settings) (cli.Letters, error) {
	keyring, err := keyringOf(s)
	if err != nil {
		return nil, err
	}
	url := s.Redis.URL.Reveal()
	client, err := live.Connect(live.ConnectOptions{URL: url, Prefix: s.Redis.Prefix})
	if err != nil {
		return nil, fmt.Errorf("redis.url: %w", err)
	}
	store, err := live.New(live.Options{
		Client: client, Keyring: keyring, Replica: "operator", Prefix: s.Redis.Prefix, Sharded: strings.HasPrefix(url, "redis+cluster"),
		Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		return nil, err
	}
	return letters{client, store}, nil
}

func (l letters) Each(ctx context.Context, partition int, f func(cli.Letter)) error {
	from, to := partition, partition+1
	if partition < 0 {
		from, to = 0, live.Partitions
	}
	for p := from; p < to; p++ {
		if err := l.store.Letters(ctx, p, func(d live.Letter) bool {
			f(cli.Letter{
				Partition: d.Partition, ID: d.ID, Aside: d.Aside, Accepted: d.Accepted, SessionID: d.SessionID, Seq: d.Seq,
				Type: d.Type, Bytes: d.Bytes, Reason: d.Reason,
			})
			return true
		}); err != nil {
			return err
		}
	}
	return nil
}

func (l letters) Retry(ctx context.Context, partition int, id string) (bool, error) {
	return l.store.RetryLetter(ctx, partition, id)
}

func (l letters) Drop(ctx context.Context, partition int, id string) (bool, error) {
	return l.store.DropLetter(ctx, partition, id)
}

func (l letters) Close() error { return l.client.Close() }
