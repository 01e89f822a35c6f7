// Package smoke measures the product beside the floor: in one run, on one machine, in turns.
//
// A run starts everything itself (two Redis, two processes of the floor, two replicas, the embedded database if it is
// there, a scripted provider in this process), loads both systems in the same way and reports ratios. Figures of one
// side alone say little: everything, the load generator included, shares the machine. Correctness is counted over all
// that is sent: a message that is lost, doubled, out of order or not acknowledged makes the run fail.
//
// Everything is on loopback and ends with Run.
package smoke

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"time"

	"github.com/google/uuid"

	"github.com/real-rm/chatbox/internal/rig"
)

// Options of a run. Zero means the default.
type Options struct {
	Conns    int           // idle connections, half at each server; default 1000
	Sessions int           // of the relay rows, two sockets each; default 200
	Rate     int           // messages a second of the latency row; default 500
	Duration time.Duration // of one measurement; default 10 s
	Rounds   int           // each system is measured so often, in turns; medians are reported; default 3
	Streams  int           // answers at a time; default 50
	Window   int           // messages under way for each session in the saturated row; default 4
	Settle   time.Duration // before memory is read; default 5 s
	AOF      bool          // the product's Redis syncs an append-only file every second
	NoDB     bool          // no database: nothing is flushed
	Profiles string        // directory for profiles of all servers, of CPU under load and of the idle heap; empty: none
	Progress io.Writer     // nil: nowhere
	Tokens   bool          // how an answer's text travels, in place of all the other rows
}

const (
	chunkEvery = 20 * time.Millisecond
	// stallLimit is how long the database may take nothing at all before it is not waited for any more: longer than a
	// whole round of the flusher takes, after which alone the queue gets shorter.
	stallLimit = 30 * time.Second
)

func (o *Options) defaults() {
	set := func(p *int, n int) {
		if *p == 0 {
			*p = n
		}
	}
	set(&o.Conns, 1000)
	set(&o.Sessions, 200)
	set(&o.Rate, 500)
	set(&o.Rounds, 3)
	set(&o.Streams, 50)
	set(&o.Window, 4)
	if o.Duration == 0 {
		o.Duration = 10 * time.Second
	}
	if o.Settle == 0 {
		o.Settle = 5 * time.Second
	}
	if o.Progress == nil {
		o.Progress = io.Discard
	}
}

// run is one run under way.
type run struct {
	o        Options
	born     time.Time
	provider *provider
	floor    *system
	ours     *system
	report   *Report
	stall    time.Duration // how long quiet waits for a database that takes nothing
}

// Run measures. What it could measure is in the report also when it returns an error.
func Run(ctx context.Context, o Options) (*Report, error) {
	o.defaults()
	r := &run{o: o, born: time.Now(), report: &Report{}, stall: stallLimit}
	uuid.EnableRandPool() // ids are made while time is measured
	files, err := raiseFiles()
	if err != nil {
		return r.report, err
	}
	if need := uint64(max(o.Conns, 4*o.Sessions, 4*o.Streams) + 500); files < need {
		return r.report, fmt.Errorf("%d open files are allowed, %d are needed: fewer -conns", files, need)
	}
	dir, err := os.MkdirTemp("", "chatbox-bench-")
	if err != nil {
		return r.report, fmt.Errorf("make a directory: %w", err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	if err := r.start(ctx, dir); err != nil {
		return r.report, err
	}
	defer r.stop()
	return r.report, r.rows(ctx)
}

func (r *run) say(format string, args ...any) {
	_, _ = fmt.Fprintf(r.o.Progress, format+"\n", args...)
}

func (r *run) start(ctx context.Context, dir string) (err error) {
	defer func() {
		if err != nil {
			r.stop()
		}
	}()
	root, err := rig.ModuleRoot()
	if err != nil {
		return err
	}
	r.say("building")
	product, relay, err := buildPrograms(ctx, dir)
	if err != nil {
		return err
	}
	ferret := ""
	if !r.o.NoDB {
		if ferret, err = rig.FerretBinary(ctx, root, r.o.Progress); err != nil {
			r.report.note("no database, so nothing was flushed: %v", err)
			ferret = ""
		}
	} else {
		r.report.note("no database, as asked: nothing was flushed")
	}
	if r.provider, err = startProvider(ctx, r.born); err != nil {
		return err
	}
	if r.floor, err = startFloor(ctx, dir, relay); err != nil {
		return err
	}
	r.ours, err = startProduct(ctx, dir, product, productOptions{aof: r.o.AOF, ferret: ferret, provider: r.provider.url})
	return err
}

func (r *run) stop() {
	for _, s := range []*system{r.ours, r.floor} {
		if s != nil {
			s.stop()
		}
	}
	if r.provider != nil {
		r.provider.close()
	}
}

// turns calls measure for both systems, rounds times, the first of a round changing, each on a machine on which
// neither system has anything left to do.
func (r *run) turns(ctx context.Context, rounds int, measure func(round int, s *system) error) error {
	for round := range rounds {
		both := []*system{r.floor, r.ours}
		if round%2 == 1 {
			both[0], both[1] = both[1], both[0]
		}
		for _, s := range both {
			if err := r.quiet(ctx); err != nil {
				return err
			}
			machine, err := machineCPU()
			if err != nil {
				return err
			}
			own, start := r.used(), time.Now()
			if err := measure(round, s); err != nil {
				return err
			}
			now, err := machineCPU()
			if err != nil {
				return err
			}
			r.report.foreign(max(0, now-machine-(r.used()-own)), time.Since(start)*time.Duration(runtime.NumCPU()))
		}
	}
	return nil
}

// used is the processor time of all that belongs to the run.
func (r *run) used() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u) // fails for no argument that is given here
	sum := time.Duration(u.Utime.Nano() + u.Stime.Nano())
	for _, s := range []*system{r.floor, r.ours} {
		v, _ := s.usage() // a process that has died shows elsewhere
		sum += v.servers + v.redis + v.db
	}
	return sum
}

// quiet waits until the database has everything and both systems use less than a tenth of a processor.
func (r *run) quiet(ctx context.Context) error {
	left, err := r.ours.settle(ctx, time.Minute, r.stall)
	if err != nil {
		return err
	}
	r.stall = stallLimit
	if left > 0 {
		r.stall = time.Second // waited for once; it is not worth a run's time again and again
		r.report.Behind++
		r.report.MostBehind = max(r.report.MostBehind, left)
	}
	const look = 300 * time.Millisecond
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); {
		var before, after usage
		if before, err = r.bothUsage(); err != nil {
			return err
		}
		if err := pause(ctx, look); err != nil {
			return err
		}
		if after, err = r.bothUsage(); err != nil {
			return err
		}
		if d := after.since(before); d.servers+d.redis+d.db < look/10 {
			return nil
		}
	}
	return nil
}

func (r *run) bothUsage() (usage, error) {
	a, err1 := r.floor.usage()
	b, err2 := r.ours.usage()
	return usage{a.servers + b.servers, a.redis + b.redis, a.db + b.db, a.machine}, errors.Join(err1, err2)
}

// profile writes a profile of the product's replicas for d, if that is asked for. The result waits for it.
func (r *run) profile(ctx context.Context, s *system, name string, d time.Duration) (wait func() error) {
	if r.o.Profiles == "" {
		return func() error { return nil }
	}
	done := make(chan error, len(s.pprof))
	for i, addr := range s.pprof {
		go func() { // ends after d; wait waits for it
			f, err := os.Create(filepath.Join(r.o.Profiles, fmt.Sprintf("%s-%s-%d.pprof", name, s.name, i)))
			if err == nil {
				err = fetch(ctx, addr, fmt.Sprintf("/debug/pprof/profile?seconds=%d", max(1, int(d.Seconds()))), f)
				err = errors.Join(err, f.Close())
			}
			done <- err
		}()
	}
	return func() error {
		var errs []error
		for range s.pprof {
			errs = append(errs, <-done)
		}
		return errors.Join(errs...)
	}
}

// heap writes what is alive in the servers, if profiles are asked for.
func (r *run) heap(ctx context.Context, s *system, name string) error {
	if r.o.Profiles == "" {
		return nil
	}
	var errs []error
	for i, addr := range s.pprof {
		f, err := os.Create(filepath.Join(r.o.Profiles, fmt.Sprintf("%s-%s-%d.heap", name, s.name, i)))
		if err == nil {
			err = errors.Join(fetch(ctx, addr, "/debug/pprof/heap?gc=1", f), f.Close())
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// Missing says what a machine lacks for a run, nil if nothing.
func Missing() error {
	_, err := exec.LookPath("redis-server")
	return err
}
