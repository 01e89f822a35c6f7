package archive

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo/options"
	"golang.org/x/sync/errgroup"

	"github.com/real-rm/chatbox/sessionstore"
)

// defaultLimit is used where the caller gives none.
const defaultLimit = 50

// ErrCursor is a cursor that Sessions did not make.
var ErrCursor = errors.New("cursor cannot be read")

// Messages returns the newest limit messages of a session whose seq is below before, oldest first. before <= 0 means
// no bound, limit <= 0 means 50. A session that nobody knows has none.
func (a *Archive) Messages(ctx context.Context, sid string, before int64, limit int) ([]sessionstore.Stored, error) {
	var bounds []bound
	if before > 0 {
		bounds = append(bounds, bound{"seq", "$lt", before})
	}
	docs, err := find[messageDoc](ctx, a, queryMessages, queryMessages.filter([]any{sid}, bounds...), limit)
	if err != nil {
		return nil, away(ctx, "read messages of session "+sid, err)
	}
	out := make([]sessionstore.Stored, 0, len(docs))
	for _, d := range slices.Backward(docs) {
		out = append(out, d.stored())
	}
	return out, nil
}

// Message returns one message by its idempotency key.
func (a *Archive) Message(ctx context.Context, sid string, sender sessionstore.Sender, messageID string) (sessionstore.Stored, bool, error) {
	docs, err := find[messageDoc](ctx, a, queryMessage, queryMessage.filter([]any{messageKey(sid, sender, messageID)}), 1)
	if err != nil {
		return sessionstore.Stored{}, false, away(ctx, "read a message of session "+sid, err)
	}
	if len(docs) == 0 {
		return sessionstore.Stored{}, false, nil
	}
	return docs[0].stored(), true, nil
}

// Session returns the document of a session. It is written at state changes and otherwise once a minute, so its
// counts and its seq may be behind those of the messages.
func (a *Archive) Session(ctx context.Context, sid string) (sessionstore.SessionDoc, bool, error) {
	docs, err := find[sessionDoc](ctx, a, querySession, querySession.filter([]any{sid}), 1)
	if err != nil {
		return sessionstore.SessionDoc{}, false, away(ctx, "read session "+sid, err)
	}
	if len(docs) == 0 {
		return sessionstore.SessionDoc{}, false, nil
	}
	return docs[0].state(), true, nil
}

// Sessions returns a user's sessions that have a message, latest activity first, limit (<= 0: 50) at a time. The
// first page has an empty cursor; next is the cursor of the page that follows, empty on the last one. A session whose
// activity changes between two pages may move to the front, and so be missed, but is never on two pages that were
// read one after the other unless it moved backwards, which activity does not. A cursor that was not made here is
// ErrCursor.
func (a *Archive) Sessions(ctx context.Context, userID, cursor string, limit int) (docs []sessionstore.SessionDoc, next string, err error) {
	if limit <= 0 {
		limit = defaultLimit
	}
	bounds := []bound{{"message_count", "$gt", 0}}
	var behind []bson.E
	if cursor != "" {
		last, id, err := parseCursor(cursor)
		if err != nil {
			return nil, "", err
		}
		bounds = append(bounds, bound{"last_activity", "$lte", last}) // lets the index start there; $or alone would not
		behind = append(behind, querySessions.after(last, id))
	}
	filter := append(querySessions.filter([]any{userID}, bounds...), behind...)
	found, err := find[sessionDoc](ctx, a, querySessions, filter, limit+1)
	if err != nil {
		return nil, "", away(ctx, "read sessions of a user", err)
	}
	if len(found) > limit {
		found = found[:limit]
		next = newCursor(found[limit-1].LastActivity, found[limit-1].ID)
	}
	for _, d := range found {
		docs = append(docs, d.state())
	}
	return docs, next, nil
}

// find runs a query.
func find[T any](ctx context.Context, a *Archive, q query, filter bson.D, limit int) ([]T, error) {
	ctx, cancel := a.bounded(ctx)
	defer cancel()
	if limit <= 0 {
		limit = defaultLimit
	}
	opts := options.Find().SetLimit(int64(limit))
	if len(q.sort) > 0 {
		opts.SetSort(q.sort)
	}
	cur, err := a.db.Collection(q.collection).Find(ctx, filter, opts)
	if err != nil {
		return nil, err
	}
	var out []T
	err = cur.All(ctx, &out)
	return out, err
}

// maxReads is how many documents oneByOne reads at a time: FerretDB has a pool of 100 connections for all replicas.
const maxReads = 16

// oneByOne reads documents by their ids and returns each at the index of its id, nil if it is not there. It is for
// FerretDB, which finds one document by its id at once and scans the collection for several.
func oneByOne[T any](ctx context.Context, a *Archive, q query, ids []string) ([]*T, error) {
	out := make([]*T, len(ids))
	reads, ctx := errgroup.WithContext(ctx)
	reads.SetLimit(maxReads)
	for i, id := range ids {
		reads.Go(func() error {
			found, err := find[T](ctx, a, q, q.filter([]any{id}), 1)
			if len(found) > 0 {
				out[i] = &found[0]
			}
			return err
		})
	}
	return out, reads.Wait()
}

// newCursor names the place behind a session in a user's list: milliseconds and id.
func newCursor(last time.Time, id string) string {
	b := binary.BigEndian.AppendUint64(nil, uint64(last.UnixMilli()))
	return base64.RawURLEncoding.EncodeToString(append(b, id...))
}

func parseCursor(s string) (last time.Time, id string, err error) {
	b, err := base64.RawURLEncoding.DecodeString(s)
	if err != nil || len(b) <= 8 {
		return time.Time{}, "", fmt.Errorf("read sessions of a user: %w", ErrCursor)
	}
	return time.UnixMilli(int64(binary.BigEndian.Uint64(b))).UTC(), string(b[8:]), nil
}
