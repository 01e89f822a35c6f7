package smoke

import (
	"context"
	"fmt"
	"time"
)

// rows measures row after row.
func (r *run) rows(ctx context.Context) error {
	steps := []func(context.Context) error{r.idle, r.connects, r.relays, r.streams}
	if r.o.Tokens {
		steps = []func(context.Context) error{r.tokens}
	}
	for _, step := range steps {
		if err := step(ctx); err != nil {
			return err
		}
	}
	left, err := r.ours.settle(ctx, time.Minute, r.stall)
	if err != nil {
		return err
	}
	if r.ours.db != nil {
		r.report.note("at the end %d events waited for the database (FerretDB on SQLite, on the same processors)", left)
	}
	return nil
}

func (r *run) idle(ctx context.Context) error {
	n := r.o.Conns
	var w [2]weight
	for i, s := range []*system{r.floor, r.ours} {
		r.say("idle: %d connections to %s", n, s.name)
		var err error
		if w[i], err = r.measureIdle(ctx, s, n); err != nil {
			return err
		}
		if err := r.quiet(ctx); err != nil {
			return err
		}
	}
	r.report.row(Row{Name: fmt.Sprintf("idle memory, %d connections", n), Unit: "KiB each", Target: 0.55},
		w[0].settled, w[1].settled)
	r.report.row(Row{Name: "  after a forced collection", Unit: "KiB each"}, w[0].garbaged, w[1].garbaged)
	r.report.row(Row{Name: "  both servers, empty", Unit: "MiB"}, float64(w[0].empty)/1024, float64(w[1].empty)/1024)
	r.report.row(Row{Name: "  with nothing to do, servers and Redis", Unit: "% of a processor"}, w[0].busy, w[1].busy)
	r.report.row(Row{Name: "connect, first session of a user", Unit: "/s", More: true}, perSecond(w[0].crowd), perSecond(w[1].crowd))
	if n < 10000 {
		r.report.note("memory is specified for 10,000 connections; with %d the garbage of opening them weighs more", n)
	}
	return nil
}

func perSecond(c *crowd) float64 { return float64(len(c.conns)) / c.took.Seconds() }

func (r *run) connects(ctx context.Context) error {
	rate := r.report.row(Row{Name: "connect, session restored", Unit: "/s", Target: 0.8, More: true})
	q := r.report.quantiles("  time of one, 32 at a time", 0)
	cost := r.report.row(Row{Name: "  servers and Redis", Unit: "µs CPU"})
	return r.turns(ctx, r.o.Rounds, func(round int, s *system) error {
		r.say("connect, round %d: %s", round+1, s.name)
		wait := r.profile(ctx, s, "connect", time.Second)
		c, err := openCrowd(ctx, s, "idle", r.o.Conns)
		if err != nil {
			return err
		}
		c.close()
		rate.add(s, perSecond(c))
		q.add(s, c.latency)
		cost.add(s, float64((c.use.servers+c.use.redis).Microseconds())/float64(len(c.conns)))
		return wait()
	})
}

// openBoth opens a fleet at each system.
func (r *run) openBoth(ctx context.Context, prefix string, n int) (fleets map[*system]*fleet, end func() counts, err error) {
	fleets = map[*system]*fleet{}
	end = func() (c counts) {
		for s, f := range fleets {
			f.close()
			if s.product {
				c = f.counts()
			} else {
				r.report.Floor.add(f.counts())
			}
		}
		return c
	}
	for _, s := range []*system{r.floor, r.ours} {
		f, err := openFleet(ctx, s, r.born, prefix, n)
		if err != nil {
			end()
			return nil, nil, err
		}
		fleets[s] = f
	}
	return fleets, end, nil
}

func (r *run) relays(ctx context.Context) error {
	r.say("relay: opening %d sessions", r.o.Sessions)
	fleets, end, err := r.openBoth(ctx, "relay", r.o.Sessions)
	if err != nil {
		return err
	}
	defer func() { r.report.Ours.add(end()) }()
	if err := r.ours.silenceAI(ctx, fleets[r.ours].sessions()); err != nil {
		return err
	}
	for _, f := range fleets {
		if _, err := r.measureRelay(ctx, f, r.o.Rate, min(time.Second, r.o.Duration)); err != nil {
			return err
		}
	}
	q := r.report.quantiles(fmt.Sprintf("message across, %d sessions, %d/s", r.o.Sessions, r.o.Rate), 1.25, 0, 1.5)
	cost := r.report.row(Row{Name: "  servers and Redis, a message", Unit: "µs CPU"})
	late := r.report.row(Row{Name: "  load generator late, p99", Unit: "ms"})
	err = r.turns(ctx, r.o.Rounds, func(round int, s *system) error {
		r.say("relay, round %d: %s", round+1, s.name)
		wait := r.profile(ctx, s, "relay", r.o.Duration)
		res, err := r.measureRelay(ctx, fleets[s], r.o.Rate, r.o.Duration)
		if err != nil {
			return err
		}
		q.add(s, res.latency)
		cost.add(s, res.cost())
		late.add(s, quantile(res.late, 0.99))
		return wait()
	})
	if err != nil {
		return err
	}
	return r.saturated(ctx, fleets)
}

func (r *run) saturated(ctx context.Context, fleets map[*system]*fleet) error {
	d := r.o.Duration / 2
	cost := r.report.row(Row{Name: fmt.Sprintf("saturated, %d under way each", r.o.Window), Unit: "µs CPU", Target: 0.75})
	servers := r.report.row(Row{Name: "  of it servers", Unit: "µs CPU"})
	red := r.report.row(Row{Name: "  of it Redis", Unit: "µs CPU"})
	db := r.report.row(Row{Name: "  beside it the database", Unit: "µs CPU"})
	rate := r.report.row(Row{Name: "  delivered", Unit: "/s", More: true})
	return r.turns(ctx, r.o.Rounds, func(round int, s *system) error {
		r.say("saturated, round %d: %s", round+1, s.name)
		wait := r.profile(ctx, s, "saturated", d)
		res, err := r.measureSaturated(ctx, fleets[s], r.o.Window, d)
		if err != nil {
			return err
		}
		n := float64(max(1, res.delivered))
		cost.add(s, res.cost())
		servers.add(s, float64(res.use.servers.Microseconds())/n)
		red.add(s, float64(res.use.redis.Microseconds())/n)
		db.add(s, float64(res.use.db.Microseconds())/n)
		rate.add(s, n/res.took.Seconds())
		return wait()
	})
}

func (r *run) streams(ctx context.Context) error {
	n := r.o.Streams
	count := max(10, int(r.o.Duration/2/chunkEvery))
	r.say("streams: opening %d sessions", n)
	fleets, end, err := r.openBoth(ctx, "stream", n)
	if err != nil {
		return err
	}
	defer func() { r.report.Ours.add(end()) }()
	q := r.report.quantiles(fmt.Sprintf("answer chunks, %d x 50/s", n), 0, 0, 1.5)
	cost := r.report.row(Row{Name: "  servers and Redis, a chunk", Unit: "µs CPU", Target: 1})
	first := r.report.row(Row{Name: "  first chunk, p99", Unit: "ms"})
	frames := r.report.row(Row{Name: "  frames for a chunk", Unit: ""})
	return r.turns(ctx, r.o.Rounds, func(round int, s *system) error {
		r.say("streams, round %d: %s", round+1, s.name)
		wait := r.profile(ctx, s, "streams", r.o.Duration/2)
		res, err := r.measureStreams(ctx, fleets[s], count, chunkEvery)
		if err != nil {
			return err
		}
		q.add(s, res.latency)
		cost.add(s, res.cost())
		if s.product {
			first.add(s, quantile(res.first, 0.99))
			frames.add(s, float64(res.frames)/float64(max(1, res.delivered)))
		}
		return wait()
	})
}
