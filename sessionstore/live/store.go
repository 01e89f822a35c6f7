package live

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"github.com/redis/go-redis/v9"

	"github.com/real-rm/chatbox/sessionstore"
	"github.com/real-rm/chatbox/sessionstore/seal"
)

// Options are what a Store needs. The zero value of a field means its default.
type Options struct {
	Client     redis.UniversalClient // required; made by Connect
	Subscriber redis.UniversalClient // for pub/sub; default Client
	Keyring    *seal.Keyring         // required
	Replica    string                // id of this replica, unique in the cluster; required
	Prefix     string                // of all keys; default "rt:"
	Sharded    bool                  // Redis Cluster: sharded pub/sub

	Window       time.Duration // a session waits this long for its user to come back; default 15m
	Presence     time.Duration // lease of a socket, renewed by Touch; default 95s: three touches and some
	GenLease     time.Duration // an answer is stolen after this silence of its producer; default 10s
	AskDelay     time.Duration // a keeper looks after an unanswered question; default 5s
	CutDelay     time.Duration // a keeper settles a cut that its author left behind; default 2s
	HoldLease    time.Duration // an admin's hold lasts this long beyond its last renewal; default 30s
	HelpWait     time.Duration // a request for help keeps a session beyond its window; default 10m
	DocEvery     time.Duration // longest time between writes of an active session's document; default 60s
	KeeperLease  time.Duration // default 10s
	ReplicaLease time.Duration // default 15s
	SweepEvery   time.Duration // default 250ms

	// Wait has every durable event acknowledged by so many replicas of Redis before the call that writes it returns,
	// for WaitTimeout at most; fewer are counted (Unacked) and no error. Chunks that share a pipeline with such an
	// event wait, too. Default 0: nobody is waited for.
	Wait        int
	WaitTimeout time.Duration // default 100ms, at most 1s: less than a command may take

	TokensPerDay   int64            // tokens that one user may spend a day (UTC); default 0: any number
	EstimateTokens func(string) int // of a text, for calls that nobody reports; default: a quarter of its characters

	LogBytes int          // part of a session's log that is kept after it is in MongoDB; default 256 KiB
	Log      *slog.Logger // nil: discard
}

// cachedFacts bounds what is kept in memory of sessions: a key and two ids for each, about 6 MB in all.
const cachedFacts = 1 << 15

// Store is sessions in Redis. Make it with New.
type Store struct {
	// Set once by New.
	client  redis.UniversalClient
	keyring *seal.Keyring
	replica string
	prefix  string
	sharded bool
	o       Options // with defaults filled in
	log     *slog.Logger
	parts   [Partitions]partition
	sc      scripts
	pl      *plumbing

	known *lru.Cache[string, facts] // by session id; safe for concurrent use
	oom   reserve
}

// New returns a Store. It does no I/O, so a replica can start while Redis is away.
func New(o Options) (*Store, error) {
	var errs []error
	if o.Client == nil {
		errs = append(errs, errors.New("option Client is required"))
	}
	if o.Keyring == nil {
		errs = append(errs, errors.New("option Keyring is required"))
	}
	if o.Replica == "" {
		errs = append(errs, errors.New("option Replica is required"))
	}
	if o.TokensPerDay < 0 {
		errs = append(errs, errors.New("option TokensPerDay is negative"))
	}
	if o.LogBytes < 0 {
		errs = append(errs, errors.New("option LogBytes is negative"))
	}
	if o.Wait < 0 {
		errs = append(errs, errors.New("option Wait is negative"))
	}
	errs = append(errs, o.defaults()...)
	if o.WaitTimeout > time.Second {
		errs = append(errs, errors.New("option WaitTimeout is over 1s"))
	}
	sc, err := loadScripts()
	errs = append(errs, err)
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("live store: %w", err)
	}
	known, err := lru.New[string, facts](cachedFacts)
	if err != nil {
		return nil, fmt.Errorf("live store: %w", err)
	}
	s := &Store{
		client: o.Client, keyring: o.Keyring, replica: o.Replica, prefix: o.Prefix, sharded: o.Sharded,
		o: o, log: o.Log, sc: sc, known: known,
	}
	for p := range s.parts {
		s.parts[p] = partitionKeys(o.Prefix, p)
	}
	s.pl = newPlumbing(s)
	return s, nil
}

// defaults fills in what is zero.
func (o *Options) defaults() (errs []error) {
	for _, d := range []struct {
		name  string
		field *time.Duration
		value time.Duration
	}{
		{"Window", &o.Window, 15 * time.Minute},
		{"Presence", &o.Presence, 95 * time.Second},
		{"GenLease", &o.GenLease, 10 * time.Second},
		{"AskDelay", &o.AskDelay, 5 * time.Second},
		{"CutDelay", &o.CutDelay, 2 * time.Second},
		{"HoldLease", &o.HoldLease, 30 * time.Second},
		{"HelpWait", &o.HelpWait, 10 * time.Minute},
		{"DocEvery", &o.DocEvery, time.Minute},
		{"KeeperLease", &o.KeeperLease, 10 * time.Second},
		{"ReplicaLease", &o.ReplicaLease, 15 * time.Second},
		{"SweepEvery", &o.SweepEvery, 250 * time.Millisecond},
		{"WaitTimeout", &o.WaitTimeout, 100 * time.Millisecond},
	} {
		switch {
		case *d.field == 0:
			*d.field = d.value
		case *d.field < time.Millisecond:
			errs = append(errs, fmt.Errorf("%s is below a millisecond", d.name))
		}
	}
	if o.Prefix == "" {
		o.Prefix = defaultPrefix
	}
	if o.LogBytes == 0 {
		o.LogBytes = 256 << 10
	}
	if o.EstimateTokens == nil {
		o.EstimateTokens = estimateTokens
	}
	if o.Subscriber == nil {
		o.Subscriber = o.Client
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return errs
}

// part returns the keys of the session's partition. What is not a session id cannot be found.
func (s *Store) part(sid string) (partition, error) {
	p, ok := PartitionOf(sid)
	if !ok {
		return "", fmt.Errorf("session id out of form: %w", sessionstore.ErrNotFound)
	}
	return s.parts[p], nil
}

// facts are what never changes in a session and is needed without asking Redis each time.
type facts struct {
	key  seal.DataKey
	user string
}

// DataKey returns the key that seals the session's bodies. It is read from Redis the first time and then kept in
// memory.
func (s *Store) DataKey(ctx context.Context, sid string) (seal.DataKey, error) {
	f, err := s.facts(ctx, sid)
	return f.key, err
}

func (s *Store) facts(ctx context.Context, sid string) (facts, error) {
	if f, ok := s.known.Get(sid); ok {
		return f, nil
	}
	p, err := s.part(sid)
	if err != nil {
		return facts{}, err
	}
	v, err := s.client.HMGet(ctx, p.session(sid).hash(), "key", "u").Result()
	if err != nil {
		return facts{}, fmt.Errorf("data key of session %s: %w", sid, redisError(err))
	}
	wrapped, _ := v[0].(string)
	user, _ := v[1].(string)
	if wrapped == "" {
		return facts{}, fmt.Errorf("data key of session %s: %w", sid, sessionstore.ErrNotFound)
	}
	return s.learn(sid, wrapped, user)
}

// learn opens a wrapped data key and remembers it.
func (s *Store) learn(sid, wrapped, user string) (facts, error) {
	if f, ok := s.known.Get(sid); ok {
		return f, nil
	}
	key, err := s.keyring.Unwrap(sid, []byte(wrapped))
	if err != nil {
		return facts{}, err
	}
	f := facts{key: key, user: user}
	s.known.Add(sid, f)
	return f, nil
}
