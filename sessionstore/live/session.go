package live

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/real-rm/chatbox/sessionstore"
	"github.com/real-rm/chatbox/sessionstore/seal"
)

// Session returns the state of a session, or ErrNotFound.
func (s *Store) Session(ctx context.Context, sid string) (sessionstore.Session, error) {
	p, err := s.part(sid)
	if err != nil {
		return sessionstore.Session{}, err
	}
	h, err := s.client.HGetAll(ctx, p.session(sid).hash()).Result()
	if err != nil {
		return sessionstore.Session{}, fmt.Errorf("read session %s: %w", sid, redisError(err))
	}
	return s.parseSession(sid, h)
}

// Active returns the session that the user may resume now. One whose window is over is still returned until a
// keeper, or Open, has ended it.
func (s *Store) Active(ctx context.Context, userID string) (sessionstore.Session, bool, error) {
	sid, err := s.client.Get(ctx, s.parts[Partition(userID)].user(userID)).Result()
	if errors.Is(err, redis.Nil) {
		return sessionstore.Session{}, false, nil
	}
	if err != nil {
		return sessionstore.Session{}, false, fmt.Errorf("read active session: %w", redisError(err))
	}
	ses, err := s.Session(ctx, sid)
	if errors.Is(err, sessionstore.ErrNotFound) || err == nil && !ses.Active {
		return sessionstore.Session{}, false, nil
	}
	return ses, err == nil, err
}

// parseSession reads a session hash. It remembers the data key, so that who has read a session can open its events
// without asking Redis again.
func (s *Store) parseSession(sid string, h map[string]string) (sessionstore.Session, error) {
	if h["e"] == "" {
		return sessionstore.Session{}, fmt.Errorf("session %s: %w", sid, sessionstore.ErrNotFound)
	}
	ses := sessionFields(sid, h)
	f, err := s.learn(sid, h["key"], ses.UserID)
	if err != nil {
		return ses, err
	}
	name, err := f.key.Open([]byte(h["nm"]), seal.NameAD(sid))
	if err != nil {
		return ses, fmt.Errorf("open name of session %s: %w", sid, err)
	}
	ses.Name = string(name)
	ses.Whole = sessionstore.FirstEpoch(ses.Epoch)
	return ses, nil
}

// sessionFields reads what is in the clear.
func sessionFields(sid string, h map[string]string) sessionstore.Session {
	num := func(name string) int64 {
		n, _ := strconv.ParseInt(h[name], 10, 64)
		return n
	}
	at := func(name string) time.Time {
		if n := num(name); n > 0 {
			return time.UnixMilli(n).UTC()
		}
		return time.Time{}
	}
	ses := sessionstore.Session{
		ID: sid, UserID: h["u"], UserName: h["un"], ModelID: h["model"], Active: h["st"] == "active",
		Owner: sessionstore.Owner(h["ow"]), AdminID: h["aid"], AdminName: h["an"], Fence: h["fence"],
		AdminAssisted: h["asst"] == "1", HelpRequested: h["help"] == "1",
		Position: sessionstore.Position{Epoch: h["e"], Seq: num("s")}, Durable: num("d"),
		Start: at("ct"), LastActivity: at("la"),
		Messages: num("mc"),
		Spent: sessionstore.Spent{Tokens: num("tk"), TokensIn: num("ti"), TokensOut: num("to"), TokensCached: num("tc"),
			Calls: int(num("cl"))},
		ResponseSum: num("rs"), ResponseMax: num("rm"), ResponseCount: num("rn"),
	}
	if !ses.Active {
		ses.End = at("et")
	}
	if ses.Owner != sessionstore.OwnerHuman {
		ses.AdminID, ses.AdminName, ses.Fence = "", "", ""
	}
	return ses
}
