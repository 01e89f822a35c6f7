package cli

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/real-rm/chatbox/server/config"
)

// Letter is an event that MongoDB would not take, without anything of what was said in it.
type Letter struct {
	Partition int
	ID        string    // within the partition
	Aside     time.Time // when it was set aside
	Accepted  time.Time // when the event was accepted; zero if unknown
	SessionID string
	Seq       int64
	Type      string // empty if unknown
	Bytes     int
	Reason    string
}

// Letters are the dead letters of a running service.
type Letters interface {
	// Each calls f with the letters of a partition, or of all with -1, oldest first within each.
	Each(ctx context.Context, partition int, f func(Letter)) error
	// Retry and Drop say whether the letter was there.
	Retry(ctx context.Context, partition int, id string) (found bool, err error)
	Drop(ctx context.Context, partition int, id string) (found bool, err error)
	Close() error
}

// letterFilter says which dead letters a command is about.
type letterFilter struct {
	partition int
	session   string
	id        string
}

func (f *letterFilter) add(cmd *cobra.Command) {
	cmd.Flags().IntVar(&f.partition, "partition", -1, "only letters of this partition")
	cmd.Flags().StringVar(&f.session, "session", "", "only letters of this session")
	cmd.Flags().StringVar(&f.id, "id", "", "only the letter with this id, as list shows it")
}

// settle reads the partition out of an id of the form that list shows.
func (f *letterFilter) settle() error {
	if partition, id, ok := strings.Cut(f.id, "/"); ok {
		n, err := strconv.Atoi(partition)
		if err != nil || f.partition >= 0 && f.partition != n {
			return fmt.Errorf("--id %s: not an id as list shows it, or not of the given partition", f.id)
		}
		f.partition, f.id = n, id
	}
	return nil
}

func (f *letterFilter) matches(l Letter) bool {
	return (f.session == "" || l.SessionID == f.session) && (f.id == "" || l.ID == f.id)
}

func (p *program) dlq() *cobra.Command {
	cmd := &cobra.Command{
		Use: "dlq", GroupID: groupRun,
		Short: "Look at dead letters: events that MongoDB would not take",
		Long: `An event that MongoDB refuses five times is set aside, so that others do not wait behind it. It stays in Redis until
an operator decides. The service may run meanwhile; what was said is never shown.`,
		Args: cobra.NoArgs, RunE: showHelp,
	}
	cmd.AddCommand(
		p.dlqCommand("list", "Show what was set aside and why", "", nil),
		p.dlqCommand("retry", "Put letters back, to be written again; without a filter all of them",
			"put back, to be written again", Letters.Retry),
		p.dlqCommand("drop", "Delete letters for good: they will never be in a transcript", "dropped for good", Letters.Drop),
	)
	return cmd
}

// dlqCommand makes a command that does act to every letter that matches; nil only shows them.
func (p *program) dlqCommand(use, short, done string, act func(Letters, context.Context, int, string) (bool, error)) *cobra.Command {
	var (
		from   sourceFlags
		filter letterFilter
		yes    bool
	)
	cmd := &cobra.Command{Use: use, Short: short, Args: cobra.NoArgs}
	from.add(cmd)
	filter.add(cmd)
	if use == "drop" {
		cmd.Flags().BoolVar(&yes, "yes", false, "really: there is no way back")
	}
	cmd.RunE = p.run(func(cmd *cobra.Command) error {
		if err := filter.settle(); err != nil {
			return err
		}
		if use == "drop" && !yes {
			return errors.New("drop deletes for good what users have said: look with dlq list, then add --yes")
		}
		letters, s, err := p.letters(&from)
		if err != nil {
			return err
		}
		found, err := matching(cmd.Context(), letters, filter)
		if err == nil && act == nil {
			err = p.showLetters(found)
		} else if err == nil {
			err = p.eachLetter(cmd.Context(), s, letters, found, done, act)
		}
		return errors.Join(err, letters.Close())
	})
	return cmd
}

func (p *program) letters(from *sourceFlags) (Letters, *config.Settings, error) {
	if p.Options.Letters == nil {
		return nil, nil, errors.New("this program has no dead letters")
	}
	s, _, err := p.load(from, false)
	if err != nil {
		return nil, nil, err
	}
	letters, err := p.Options.Letters(s)
	return letters, s, err
}

func matching(ctx context.Context, letters Letters, filter letterFilter) (found []Letter, err error) {
	err = letters.Each(ctx, filter.partition, func(l Letter) {
		if filter.matches(l) {
			found = append(found, l)
		}
	})
	return found, err
}

func (p *program) showLetters(found []Letter) error {
	w := tabwriter.NewWriter(p.Stdout, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(w, "ID\tSET ASIDE\tACCEPTED\tSESSION\tSEQ\tTYPE\tBYTES\tREASON")
	for _, l := range found {
		_, _ = fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%d\t%s\t%d\t%s\n",
			l.name(), moment(l.Aside), moment(l.Accepted), clean(l.SessionID), l.Seq, clean(l.Type), l.Bytes, clean(l.Reason))
	}
	return w.Flush()
}

// eachLetter acts on letters one by one, and logs each: what an operator did must be found later.
func (p *program) eachLetter(ctx context.Context, s *config.Settings, letters Letters, found []Letter, done string,
	act func(Letters, context.Context, int, string) (bool, error),
) error {
	log := NewLogger(p.Stderr, s.Log.Level)
	n := 0
	for _, l := range found {
		there, err := act(letters, ctx, l.Partition, l.ID)
		if err != nil {
			return fmt.Errorf("after %d of %d: %w", n, len(found), err)
		}
		if !there {
			continue // somebody else was faster
		}
		n++
		log.Warn("dead letter dealt with", "component", "dlq", "done", done, "letter", l.name(), "session_id", l.SessionID, "seq", l.Seq,
			"type", l.Type, keyReason, l.Reason)
	}
	_, err := fmt.Fprintf(p.Stdout, "%d %s\n", n, done)
	return err
}

// name is the letter's id among those of all partitions.
func (l Letter) name() string { return strconv.Itoa(l.Partition) + "/" + l.ID }

func moment(t time.Time) string {
	if t.IsZero() {
		return "?"
	}
	return t.UTC().Format(time.RFC3339)
}

// clean keeps what a broken entry may hold from reaching the terminal.
func clean(s string) string {
	if s == "" {
		return "?"
	}
	if q := strconv.QuoteToASCII(s); q != `"`+s+`"` {
		return q
	}
	return s
}
