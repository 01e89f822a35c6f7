package smoke

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
)

// Row is one line of the table: a figure of both systems, the median of its rounds.
type Row struct {
	Name   string
	Unit   string
	Target float64 // what the ratio ours/floor must not be above (More: below); 0: none
	More   bool    // more is better

	floor, ours []float64 // by round
}

func (r *Row) add(s *system, v float64) {
	if s.product {
		r.ours = append(r.ours, v)
	} else {
		r.floor = append(r.floor, v)
	}
}

// Floor and Ours are the medians.
func (r *Row) Floor() float64 { return median(r.floor) }

// Ours is the product's median.
func (r *Row) Ours() float64 { return median(r.ours) }

// Ratio is the median of the rounds' ratios ours/floor, 0 if there is none.
func (r *Row) Ratio() float64 {
	var ratios []float64
	for i := range min(len(r.floor), len(r.ours)) {
		if r.floor[i] > 0 {
			ratios = append(ratios, r.ours[i]/r.floor[i])
		}
	}
	return median(ratios)
}

func median(v []float64) float64 {
	if len(v) == 0 {
		return 0
	}
	s := slices.Sorted(slices.Values(v))
	if n := len(s); n%2 == 0 {
		return (s[n/2-1] + s[n/2]) / 2
	}
	return s[len(s)/2]
}

// Report is what a run has found.
type Report struct {
	Rows  []*Row
	Notes []string
	// Ours and Floor count what was sent in the relay and stream rows and what became of it. Only Ours decides.
	Ours, Floor counts
	// Behind is how many measurements began while events still waited for the database, MostBehind the most of them.
	Behind     int
	MostBehind int64

	busy, all time.Duration // of the machine, others' share
}

// Failed says that something was lost, doubled, out of order or refused.
func (r *Report) Failed() bool { return r.Ours.bad() }

func (r *Report) note(format string, args ...any) {
	r.Notes = append(r.Notes, fmt.Sprintf(format, args...))
}

func (r *Report) foreign(busy, all time.Duration) {
	r.busy += busy
	r.all += all
}

// row adds a row with its figures, if they are known already: floor, ours.
func (r *Report) row(row Row, v ...float64) *Row {
	if len(v) == 2 {
		row.floor, row.ours = v[:1:1], v[1:]
	}
	r.Rows = append(r.Rows, &row)
	return &row
}

// three are the rows p50, p95 and p99 of one quantity.
type three [3]*Row

var levels = [3]float64{0.5, 0.95, 0.99}

// quantiles adds the rows of one quantity, with targets for some.
func (r *Report) quantiles(name string, targets ...float64) three {
	var t three
	for i, label := range []string{"p50", "p95", "p99"} {
		row := Row{Name: name + " " + label, Unit: "ms"}
		if i > 0 {
			row.Name = "  " + label
		}
		if i < len(targets) {
			row.Target = targets[i]
		}
		t[i] = r.row(row)
	}
	return t
}

func (t three) add(s *system, d []time.Duration) {
	for i, row := range t {
		row.add(s, quantile(d, levels[i]))
	}
}

// Print writes the table.
func (r *Report) Print(w io.Writer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "\n%-46s %10s %10s %8s  %s\n", "", "floor", "ours", "ratio", "target of the ratio")
	for _, row := range r.Rows {
		if len(row.floor)+len(row.ours) == 0 {
			continue
		}
		fmt.Fprintf(&b, "%-46s %10s %10s %8s  %s\n", row.Name, figure(row.floor), figure(row.ours), ratio(row.Ratio()), row.verdict())
	}
	fmt.Fprintf(&b, "\nsent %d, lost %d, doubled %d, out of order %d, not acknowledged %d, faults %d\n", r.Ours.sent, r.Ours.lost,
		r.Ours.doubled, r.Ours.unordered, r.Ours.unacked, len(r.Ours.faults))
	for _, f := range r.Ours.faults[:min(len(r.Ours.faults), 5)] {
		fmt.Fprintf(&b, "  %s\n", f)
	}
	if r.Floor.bad() {
		fmt.Fprintf(&b, "the floor: sent %d, lost %d, doubled %d, out of order %d, not returned %d, faults %d\n", r.Floor.sent, r.Floor.lost,
			r.Floor.doubled, r.Floor.unordered, r.Floor.unacked, len(r.Floor.faults))
	}
	if r.all > 0 {
		fmt.Fprintf(&b, "- other processes used %.0f %% of the machine while it was measured; above 10 %% repeat the run\n", 100*float64(r.busy)/float64(r.all))
	}
	if r.Behind > 0 {
		fmt.Fprintf(&b, "- %d measurements began while the database had not taken everything yet, up to %d events\n", r.Behind, r.MostBehind)
	}
	for _, n := range append(slices.Clone(about), r.Notes...) {
		fmt.Fprintf(&b, "- %s\n", n)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// about says what the rows contain.
var about = []string{
	"medians of the rounds; the ratio is the median of each round's own ratio",
	"connect: the product's until its session is restored and live, the floor's until the upgrade alone; the dialing " +
		"side shares the processors, which draws the ratio towards 1",
	"message across: one user's two sockets on two replicas, sealed, stored and queued for the database before it is " +
		"published; the session's owner was set to human in Redis, so the AI is silent as under a takeover. Each message " +
		"is also one frame back to its sender: the ack here, its echo at the floor",
	"answer chunks: from the provider's write to the client on the other replica; the floor relays messages of the same size " +
		"at the same pace from a socket, without a provider's stream and its parsing",
	"CPU: user and system time of both servers and their Redis from /proc; the database stands beside it",
}

func figure(v []float64) string {
	m := median(v)
	switch {
	case len(v) == 0:
		return "-"
	case m >= 1000:
		return fmt.Sprintf("%.0f", m)
	case m >= 10:
		return fmt.Sprintf("%.1f", m)
	default:
		return fmt.Sprintf("%.2f", m)
	}
}

func ratio(v float64) string {
	if v == 0 {
		return ""
	}
	return fmt.Sprintf("%.2fx", v)
}

func (r *Row) verdict() string {
	text := r.Unit
	if r.Target == 0 {
		return text
	}
	rel, met := "at most", r.Ratio() <= r.Target
	if r.More {
		rel, met = "at least", r.Ratio() >= r.Target
	}
	word := "ok"
	if !met {
		word = "MISSED"
	}
	return fmt.Sprintf("%s, %s %.2fx: %s", text, rel, r.Target, word)
}
