package turn

import (
	"context"
	"errors"
	"log/slog"

	"github.com/real-rm/chatbox/sessionstore"
)

// errGiven ends a turn whose answer was given before: Redis has lost it, MongoDB has it.
var errGiven = errors.New("the answer was given before")

// given says whether MongoDB has the answer that Redis is owed. Only a Redis that has lost something can be wrong about
// it, so that ordinary turns cost nothing. With MongoDB away the answer is given again: to wait for it, for however long,
// would be worse.
func (a *answer) given(ctx context.Context) bool {
	if a.g.Whole || a.opts.Revival == nil {
		return false
	}
	ev, found, err := a.opts.History.Message(ctx, a.g.SessionID, sessionstore.SenderAI, a.g.AnswerID)
	if err != nil {
		a.log.Debug("not known whether the answer was given", "session_id", a.g.SessionID, "error", err.Error())
		return false
	}
	a.before = ev
	return found
}

// putBack gives Redis back what it has lost, in its place, so that nothing is owed any more. Where that does not reach the
// answer, because it is older than what is put back, it is written again under its id.
func (a *answer) putBack(ctx context.Context, log *slog.Logger) (again bool) {
	sid := a.g.SessionID
	if a.run.putBack != a.g.AnswerID {
		a.run.putBack = a.g.AnswerID
		err := a.opts.Revival.Revive(ctx, sid, "")
		released := a.release(ctx, log)
		if err != nil {
			log.Warn("answer that was lost not put back", "error", err.Error())
		}
		if err != nil || !released { // keepers look again
			return false
		}
		log.Info("answer that was lost put back")
		return true
	}
	err := a.retry(ctx, func(ctx context.Context) (err error) {
		_, again, err = a.opts.Store.Finish(ctx, a.g, a.before)
		return err
	})
	if err != nil {
		log.Warn("answer that was lost not written again", "error", err.Error())
	}
	return again && err == nil
}
