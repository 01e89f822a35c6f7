package live

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/real-rm/chatbox/sessionstore"
)

// Book counts a call of a provider before its request leaves, so that the number of calls is exact whatever happens
// then. What g.Spent says is what the calls before it cost: they have ended. Errors: *BudgetError and ErrStopped
// (nothing is booked and the request must not leave), ErrFenced, ErrAway.
func (s *Store) Book(ctx context.Context, g *sessionstore.Generation, c sessionstore.Call) error {
	if err := s.book(ctx, g, c); err != nil {
		return fmt.Errorf("book call in session %s: %w", g.SessionID, err)
	}
	g.Calls++
	return nil
}

func (s *Store) book(ctx context.Context, g *sessionstore.Generation, c sessionstore.Call) error {
	p, err := s.part(g.SessionID)
	if err != nil {
		return err
	}
	f, err := s.facts(ctx, g.SessionID)
	if err != nil {
		return err
	}
	k := p.session(g.SessionID)
	r, err := s.run(ctx, s.sc.book, []string{k.gen(), k.hash(), p.spent(f.user)},
		g.Token, g.Calls+1, c.ModelID, c.Prompt, settled(g.Spent), s.o.TokensPerDay, subject(c.About))
	if errors.Is(err, sessionstore.ErrBudget) {
		return &sessionstore.BudgetError{Wait: time.Duration(r.num(1)) * time.Millisecond}
	}
	return err
}

// CheckBudget returns a *BudgetError if the user has no tokens left today. Other errors: ErrAway. Without a limit it does
// no I/O.
func (s *Store) CheckBudget(ctx context.Context, userID string) error {
	if s.o.TokensPerDay <= 0 {
		return nil
	}
	r, err := s.run(ctx, s.sc.budget, []string{s.parts[Partition(userID)].spent(userID)})
	if err != nil {
		return fmt.Errorf("read what a user has spent: %w", err)
	}
	if r.num(1) >= s.o.TokensPerDay {
		return &sessionstore.BudgetError{Wait: time.Duration(r.num(2)) * time.Millisecond}
	}
	return nil
}

// subject is what an answer is about, as gen has it: pairs of a name and a value, which holds no '\n'.
func subject(about map[string]string) string {
	var pairs []string
	for _, name := range subjects {
		if v := about[name]; v != "" {
			pairs = append(pairs, name+"="+v)
		}
	}
	return strings.Join(pairs, "\n")
}

var subjects = [...]string{sessionstore.MetaAnswers, sessionstore.MetaReplaces, sessionstore.MetaContinues}

// settled is what calls that have ended cost, as gen has it.
func settled(u sessionstore.Spent) string {
	estimated := 0
	if u.Estimated {
		estimated = 1
	}
	return fmt.Sprint(u.Tokens, u.TokensIn, u.TokensOut, u.TokensCached, estimated)
}

// cost is what an answer cost, as life.lua books it.
func cost(u sessionstore.Spent) string {
	return fmt.Sprint(u.Tokens, u.TokensIn, u.TokensOut, u.TokensCached, u.Calls)
}

// spent is what the calls of an answer cost, by its gen hash. The one that has not ended, because its producer fell
// silent or was cut, is estimated: its prompt as booked, and late, the text that was published since.
func (s *Store) spent(gen map[string]string, late string) sessionstore.Spent {
	var n [5]int64
	for i, text := range strings.Fields(gen["su"]) {
		if i < len(n) {
			n[i], _ = strconv.ParseInt(text, 10, 64)
		}
	}
	u := sessionstore.Spent{Tokens: n[0], TokensIn: n[1], TokensOut: n[2], TokensCached: n[3], Estimated: n[4] != 0}
	u.Calls, _ = strconv.Atoi(gen["calls"])
	if ended, _ := strconv.Atoi(gen["sn"]); ended < u.Calls {
		prompt, _ := strconv.ParseInt(gen["pe"], 10, 64)
		said := int64(s.o.EstimateTokens(late))
		u = u.Plus(sessionstore.Spent{Tokens: prompt + said, TokensIn: prompt, TokensOut: said, Estimated: true})
	}
	return u
}

// estimateTokens is the rule of thumb without languages: a token for four characters.
func estimateTokens(text string) int { return (len([]rune(text)) + 3) / 4 }

// conversations reads what providers remember of a session out of its hash.
func conversations(h map[string]string) map[string]sessionstore.Conversation {
	var out map[string]sessionstore.Conversation
	for name, v := range h {
		model, ok := strings.CutPrefix(name, "cv:")
		if !ok {
			continue
		}
		f := strings.SplitN(v, " ", 3)
		if len(f) != 3 {
			continue
		}
		c := sessionstore.Conversation{ID: f[2]}
		c.UpTo, _ = strconv.ParseInt(f[0], 10, 64)
		c.Answer, _ = strconv.ParseInt(f[1], 10, 64)
		if out == nil {
			out = make(map[string]sessionstore.Conversation)
		}
		out[model] = c
	}
	return out
}
