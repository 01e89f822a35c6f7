package live

import (
	"context"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
)

const (
	// maxBatchCalls and maxBatchBytes bound one pipeline, so that a burst cannot hold up the connection, nor
	// Redis, for longer than a few milliseconds.
	maxBatchCalls = 256
	maxBatchBytes = 1 << 20

	// flightTimeout bounds one pipeline, so that a call waits twice this long at the most: for the one before, and for
	// its own. A caller that waits less long leaves alone.
	flightTimeout = 4 * time.Second
)

// invocation is one call of a script and, after invoke, its outcome.
type invocation struct {
	script  *redis.Script
	keys    []string
	args    []any
	durable bool // it writes durable events, see acks

	val any
	err error
}

// invoke runs the calls in one pipeline by their digests, and those whose script Redis does not know (it forgets
// them when it restarts or fails over) in a second one by their text. Every call gets its own outcome.
func invoke(ctx context.Context, client redis.UniversalClient, calls []*invocation) {
	unknown := runPipeline(ctx, client, calls, (*redis.Script).EvalSha)
	if len(unknown) > 0 {
		runPipeline(ctx, client, unknown, (*redis.Script).Eval)
	}
}

type evalFunc func(*redis.Script, context.Context, redis.Scripter, []string, ...any) *redis.Cmd

// runPipeline returns the calls that failed because their script is not loaded.
func runPipeline(ctx context.Context, client redis.UniversalClient, calls []*invocation, eval evalFunc) []*invocation {
	cmds := make([]*redis.Cmd, len(calls))
	if len(calls) == 1 {
		c := calls[0]
		cmds[0] = eval(c.script, ctx, client, c.keys, c.args...)
	} else {
		pipe := client.Pipeline()
		for i, c := range calls {
			cmds[i] = eval(c.script, ctx, pipe, c.keys, c.args...)
		}
		execute(ctx, pipe)
	}
	return outcomes(calls, cmds)
}

// outcomes gives every call its own, and returns those whose script is not loaded.
func outcomes(calls []*invocation, cmds []*redis.Cmd) (unknown []*invocation) {
	for i, cmd := range cmds {
		calls[i].val, calls[i].err = cmd.Result()
		if calls[i].err != nil && isNoScript(calls[i].err) {
			unknown = append(unknown, calls[i])
		}
	}
	return unknown
}

func isNoScript(err error) bool { return strings.HasPrefix(err.Error(), "NOSCRIPT") }

// batcher gathers the script calls of many goroutines into pipelines. A call made while nothing is under way is
// sent at once; calls made meanwhile travel together as soon as the reply is there. So a lone call waits for
// nobody, and under load two system calls carry many.
//
// It has no goroutine: the caller that finds nothing under way sends, and hands the lead to a waiting caller when
// its own call is done. All methods may be called concurrently.
type batcher struct {
	// Set once by newBatcher.
	client redis.UniversalClient
	acks   *acks
	log    *slog.Logger

	mu    sync.Mutex // guards the fields below and the state of calls; never held during I/O
	busy  bool       // somebody leads
	queue []*batchCall
}

// batchCall is a call of the batcher.
type batchCall struct {
	invocation
	size int

	wake  chan struct{} // gets one value when the state becomes leading, is closed when it becomes done
	state callState     // guarded by batcher.mu
}

type callState uint8

const (
	callQueued  callState = iota
	callLeading           // still queued; its goroutine must send the next pipeline
	callSent
	callDone
	callLeft // its caller waits no more, and it was never sent
)

func newBatcher(client redis.UniversalClient, log *slog.Logger) *batcher {
	return &batcher{client: client, log: log}
}

// Do runs a script and returns its reply, or the error of go-redis unchanged. A caller whose ctx ends gets the
// cause of that and must take the outcome for unknown; the caller that sends for others can be late with it by
// flightTimeout at most.
func (b *batcher) Do(ctx context.Context, script *redis.Script, keys []string, args ...any) (any, error) {
	return b.do(ctx, invocation{script: script, keys: keys, args: args})
}

func (b *batcher) do(ctx context.Context, inv invocation) (any, error) {
	c := &batchCall{
		invocation: inv,
		size:       sizeOf(inv.keys, inv.args),
		wake:       make(chan struct{}, 1),
	}
	b.mu.Lock()
	b.queue = append(b.queue, c)
	if b.busy {
		b.mu.Unlock()
		select {
		case <-c.wake:
		case <-ctx.Done():
			b.leave(c)
			return nil, context.Cause(ctx)
		}
		b.mu.Lock()
		if c.state == callDone {
			b.mu.Unlock()
			return c.val, c.err
		}
	}
	b.busy = true
	batch := b.takeLocked()
	b.mu.Unlock()

	b.send(ctx, batch)
	return c.val, c.err
}

// send runs the batch, in which the caller's own call is, and gives up the lead.
func (b *batcher) send(ctx context.Context, batch []*batchCall) {
	calls := make([]*invocation, len(batch))
	for i, c := range batch {
		calls[i] = &c.invocation
	}
	if len(batch) > 1 { // one caller's impatience must not fail the others
		ctx = context.WithoutCancel(ctx)
	}
	ctx, cancel := context.WithTimeout(ctx, flightTimeout)
	defer cancel()
	defer func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.handOverLocked()
		for _, c := range batch {
			c.state = callDone
			close(c.wake)
		}
	}()
	b.acks.invoke(ctx, b.client, calls)
}

// takeLocked removes the next batch from the queue: at least one call, as many as one pipeline may carry.
func (b *batcher) takeLocked() []*batchCall {
	var batch []*batchCall
	n, size := 0, 0
	for _, c := range b.queue {
		if c.state != callLeft {
			if len(batch) > 0 && (len(batch) == maxBatchCalls || size+c.size > maxBatchBytes) {
				break
			}
			c.state = callSent
			size += c.size
			batch = append(batch, c)
		}
		n++
	}
	rest := copy(b.queue, b.queue[n:])
	clear(b.queue[rest:])
	b.queue = b.queue[:rest]
	return batch
}

// handOverLocked makes the first waiting caller the next sender.
func (b *batcher) handOverLocked() {
	for _, c := range b.queue {
		if c.state == callQueued {
			c.state = callLeading
			c.wake <- struct{}{}
			return
		}
	}
	b.queue = b.queue[:0]
	b.busy = false
}

// leave takes back a call whose caller's ctx has ended.
func (b *batcher) leave(c *batchCall) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch c.state {
	case callQueued:
		c.state = callLeft
	case callLeading:
		c.state = callLeft
		b.handOverLocked()
	case callSent, callDone, callLeft:
	}
}

// batchers is one batcher for each primary, so that a node of a cluster that does not answer holds up its own
// callers only. With a single Redis there is one.
type batchers struct {
	// Set once by newBatchers.
	client  redis.UniversalClient
	cluster *redis.ClusterClient // nil: a single Redis
	acks    *acks
	log     *slog.Logger
	one     *batcher

	mu     sync.Mutex // guards byNode; never held during I/O
	byNode map[string]*batcher
}

func newBatchers(client redis.UniversalClient, acks *acks, log *slog.Logger) *batchers {
	cluster, _ := client.(*redis.ClusterClient)
	b := &batchers{
		client:  client,
		cluster: cluster,
		acks:    acks,
		log:     log,
		one:     newBatcher(client, log),
		byNode:  make(map[string]*batcher),
	}
	b.one.acks = acks
	return b
}

// Do is batcher.Do, with the batcher of the primary that has keys[0]. Where that is wrong because a slot has moved,
// go-redis follows.
func (b *batchers) Do(ctx context.Context, script *redis.Script, keys []string, args ...any) (any, error) {
	return b.do(ctx, invocation{script: script, keys: keys, args: args})
}

func (b *batchers) do(ctx context.Context, inv invocation) (any, error) {
	return b.of(ctx, inv.keys[0]).do(ctx, inv)
}

func (b *batchers) of(ctx context.Context, key string) *batcher {
	if b.cluster == nil {
		return b.one
	}
	node := nodeOf(ctx, b.client, key)
	if node == nil {
		return b.one
	}
	addr := node.Options().Addr
	b.mu.Lock()
	defer b.mu.Unlock()
	own := b.byNode[addr]
	if own == nil {
		own = newBatcher(b.client, b.log)
		own.acks = b.acks
		b.byNode[addr] = own
	}
	return own
}

// sizeOf is about how many bytes a call takes on the wire.
func sizeOf(keys []string, args []any) int {
	n := 64
	for _, k := range keys {
		n += len(k) + 8
	}
	for _, a := range args {
		switch a := a.(type) {
		case string:
			n += len(a) + 8
		case []byte:
			n += len(a) + 8
		default:
			n += 24
		}
	}
	return n
}
