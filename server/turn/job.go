package turn

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/real-rm/chatbox/sessionstore"
)

// goOn is what a model is told that cannot be given the beginning of its answer.
const goOn = "Your last answer was cut off. Continue it exactly where it stopped: begin with the very next word, repeat nothing, " +
	"and do not mention the interruption."

// job is what an answer is to be: one to new questions, or another one to older questions.
type job struct {
	kind    string // regenerate, continue or retry; empty: new questions
	target  string // id of the answer that is replaced or gone on with
	answers []string
	before  *talk  // the conversation that the model reads
	partial string // text that the answer goes on after; not a part of it
}

// errNotYet makes a call be repeated that found less than there must be.
var errNotYet = errors.New("not there yet")

// errTarget ends a turn whose answer or question has vanished.
var errTarget = errors.New("what the answer is about is not there any more")

// job finds out what is to be done for the questions that the generation is to answer.
func (a *answer) job(ctx context.Context) (job, error) {
	events, err := a.context(ctx, a.g.UpTo)
	if err != nil {
		return job{}, err
	}
	wish, err := a.wish(ctx, events)
	if err != nil {
		return job{}, err
	}
	if wish.Type == "" {
		if events, err = a.withQuestions(ctx, events); err != nil {
			return job{}, err
		}
		return job{before: newTalk(events)}, nil
	}
	if wish.Type == sessionstore.TypeRetry {
		// What the newest answer to the question stands for is what has failed.
		for _, ev := range slices.Backward(events) {
			if ev.Type == sessionstore.TypeAIResponse && slices.Contains(strings.Fields(ev.Metadata[sessionstore.MetaAnswers]), wish.Target) {
				return newJob(wish.Type, ev.MessageID, events)
			}
		}
		return job{}, fmt.Errorf("no answer to question %s: %w", wish.Target, errTarget)
	}
	if !slices.ContainsFunc(events, func(ev sessionstore.Event) bool { return ev.MessageID == wish.Target }) {
		if events, err = a.around(ctx, wish.Target); err != nil {
			return job{}, err
		}
	}
	return newJob(wish.Type, wish.Target, events)
}

// questionWait is how long a turn waits for a question that cannot be read yet, before it fails.
const questionWait = 15 * time.Second

// withQuestions adds what is to be answered to a context that does not reach it. After Redis has lost its newest events
// the log may begin after a question, and MongoDB not have it yet, or be away: a shorter memory will do, but not one
// without the question.
func (a *answer) withQuestions(ctx context.Context, events []sessionstore.Event) ([]sessionstore.Event, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, questionWait, fmt.Errorf("question cannot be read: %w", errTarget))
	defer cancel()
	for _, id := range a.g.Questions {
		there := func(ev sessionstore.Event) bool { return ev.MessageID == id && ev.Sender == sessionstore.SenderUser }
		if slices.ContainsFunc(events, there) {
			continue
		}
		var ev sessionstore.Event
		err := a.retry(ctx, func(ctx context.Context) error {
			var found bool
			var err error
			ev, found, err = a.opts.History.Message(ctx, a.g.SessionID, sessionstore.SenderUser, id)
			if err == nil && found {
				return nil
			}
			return errors.Join(errNotYet, err)
		})
		if err != nil {
			return nil, err
		}
		events = append(events, ev)
	}
	slices.SortStableFunc(events, func(a, b sessionstore.Event) int { return cmp.Compare(a.Seq, b.Seq) })
	return events, nil
}

// newJob is the job of making another answer in place of, or after, the target.
func newJob(kind, target string, events []sessionstore.Event) (job, error) {
	t := newTalk(events)
	old := t.byID[target]
	if old == nil {
		return job{}, fmt.Errorf("answer %s: %w", target, errTarget)
	}
	j := job{kind: kind, target: target, answers: old.names, before: t.upTo(old)}
	if kind == sessionstore.TypeContinue {
		j.partial = old.text
	}
	return j, nil
}

// wish returns the regenerate, continue or retry that the generation is for, or nothing. Such a wish is always alone.
func (a *answer) wish(ctx context.Context, events []sessionstore.Event) (sessionstore.Event, error) {
	if len(a.g.Questions) != 1 {
		return sessionstore.Event{}, nil
	}
	id := a.g.Questions[0]
	i := slices.IndexFunc(events, func(ev sessionstore.Event) bool {
		return ev.MessageID == id && ev.Sender == sessionstore.SenderUser
	})
	var ev sessionstore.Event
	if i >= 0 {
		ev = events[i]
	} else if err := a.retry(ctx, func(ctx context.Context) (err error) {
		ev, _, err = a.opts.History.Message(ctx, a.g.SessionID, sessionstore.SenderUser, id)
		return err
	}); err != nil {
		return ev, err
	}
	switch ev.Type {
	case sessionstore.TypeRegenerate, sessionstore.TypeContinue, sessionstore.TypeRetry:
		return ev, nil
	}
	return sessionstore.Event{}, nil
}

// around reads the conversation as it was when the answer was given, for one that is older than the newest events.
func (a *answer) around(ctx context.Context, answerID string) ([]sessionstore.Event, error) {
	var ev sessionstore.Event
	var found bool
	err := a.retry(ctx, func(ctx context.Context) (err error) {
		ev, found, err = a.opts.History.Message(ctx, a.g.SessionID, sessionstore.SenderAI, answerID)
		return err
	})
	if err != nil {
		return nil, err
	}
	if !found {
		return nil, fmt.Errorf("answer %s: %w", answerID, errTarget)
	}
	return a.context(ctx, ev.Seq)
}

// describe adds to the final event's metadata what the answer is about.
func (j job) describe(meta map[string]string, questions []string) {
	meta[sessionstore.MetaAnswers] = strings.Join(append(slices.Clone(questions), j.answers...), " ")
	switch j.kind {
	case sessionstore.TypeContinue:
		meta[sessionstore.MetaContinues] = j.target
	case sessionstore.TypeRegenerate, sessionstore.TypeRetry:
		meta[sessionstore.MetaReplaces] = j.target
	}
}
