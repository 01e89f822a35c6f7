package archive

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"

	"github.com/real-rm/chatbox/sessionstore"
)

const (
	// maxInsert documents and about maxInsertBytes go to MongoDB at once: little enough for the timeout of one operation,
	// also where one document takes 20 ms. A batch that never comes through in time would hold up all that follow it.
	maxInsert      = 200
	maxInsertBytes = 8 << 20
	// maxDocument is MongoDB's limit of 16 MiB, less what it adds itself.
	maxDocument = 16<<20 - 16<<10

	codeDuplicate = 11000
)

var errTooLarge = errors.New("larger than a MongoDB document may be")

// transient are server codes that say something about MongoDB, not about the document: host unreachable, not primary,
// shutting down, interrupted, write conflict, timeouts, no space, over quota, not allowed to write.
var transient = []int{
	6, 7, 13, 18, 24, 26, 43, 50, 63, 64, 89, 91, 96, 112, 134, 150, 175, 189, 202, 234, 262, 317,
	8000, 9001, 10058, 10107, 11600, 11602, 13388, 13435, 13436, 14031,
}

// InsertMessages stores entries in one go. What is there already counts as stored; if it is there under a lower number,
// because Redis had lost it while it was on its way here and got it again from who sent it, it takes the new number,
// which is the one that clients know. err means that MongoDB did not
// take the entries, or not surely: repeat them all. failed holds, by index, entries that MongoDB refuses for what
// they are; all others are stored when err is nil. Neither has contents in its text.
func (a *Archive) InsertMessages(ctx context.Context, entries []sessionstore.WALEntry) (failed map[int]error, err error) {
	parts, failed := split(entries, time.Now())
	for _, p := range parts { // one after the other: what MongoDB has of a session has no holes but within one part
		there, refused, err := a.insert(ctx, colMessages, p.docs)
		if err == nil {
			err = a.renumber(ctx, p.rows, there)
		}
		if err != nil {
			return nil, away(ctx, fmt.Sprintf("insert %d of %d messages", len(p.docs), len(entries)), err)
		}
		for i, err := range refused {
			failed[p.at[i]] = err
		}
	}
	return failed, nil
}

// part is what goes to MongoDB at once.
type part struct {
	docs []any
	rows []messageDoc // the same
	at   []int        // index in entries of each document
	size int
}

// split makes documents of entries, in parts, and says which can be none.
func split(entries []sessionstore.WALEntry, now time.Time) (parts []*part, failed map[int]error) {
	failed = map[int]error{}
	var p *part
	for i, e := range entries {
		if len(e.H)+len(e.C) > maxDocument { // before all that is copied
			failed[i] = errTooLarge
			continue
		}
		d, err := newMessageDoc(e, now)
		if err != nil {
			failed[i] = err
			continue
		}
		raw, err := bson.Marshal(d)
		if err == nil && len(raw) > maxDocument {
			err = errTooLarge
		}
		if err != nil {
			failed[i] = err
			continue
		}
		if p == nil || len(p.docs) == maxInsert || p.size >= maxInsertBytes {
			p = &part{}
			parts = append(parts, p)
		}
		p.docs, p.rows, p.at, p.size = append(p.docs, bson.Raw(raw)), append(p.rows, d), append(p.at, i), p.size+len(raw)
	}
	return parts, failed
}

// renumber gives messages that are there already, by their index in rows, the number and the text that they have now,
// only ever forward. Most have them: they were inserted by a flusher that could not say so any more.
func (a *Archive) renumber(ctx context.Context, rows []messageDoc, there []int) error {
	if len(there) == 0 {
		return nil
	}
	kind, err := a.kind(ctx)
	if err != nil {
		return err
	}
	var stored []*messageDoc
	if kind == serverFerret { // as in update; those of a first epoch need not be looked at
		there = slices.DeleteFunc(there, func(i int) bool { return sessionstore.FirstEpoch(rows[i].Epoch) })
		ids := make([]string, len(there))
		for n, i := range there {
			ids[n] = rows[i].ID
		}
		if stored, err = oneByOne[messageDoc](ctx, a, queryMessage, ids); err != nil {
			return err
		}
	}
	var models []mongo.WriteModel
	for n, i := range there {
		d := rows[i]
		filter := queryMessage.filter([]any{d.ID})
		if kind != serverFerret {
			filter = append(filter, bson.E{Key: "seq", Value: bson.D{{Key: "$lt", Value: d.Seq}}})
		} else if stored[n] == nil || stored[n].Seq >= d.Seq {
			continue
		}
		models = append(models, mongo.NewUpdateOneModel().SetFilter(filter).SetUpdate(bson.D{{Key: "$set", Value: bson.D{
			{Key: "epoch", Value: d.Epoch}, {Key: "seq", Value: d.Seq}, {Key: "timestamp", Value: d.Timestamp},
			{Key: "tokens", Value: d.Tokens}, {Key: "tokens_in", Value: d.TokensIn}, {Key: "tokens_out", Value: d.TokensOut},
			{Key: "tokens_cached", Value: d.TokensCached}, {Key: "calls", Value: d.Calls}, {Key: "estimated", Value: d.Estimated},
			{Key: "response_time", Value: d.ResponseTime}, {Key: "first_token", Value: d.FirstToken}, {Key: "model_id", Value: d.ModelID},
			{Key: "h", Value: d.H}, {Key: "c", Value: d.C}, {Key: "_mt", Value: d.Modified},
		}}}))
	}
	for chunk := range slices.Chunk(models, maxUpdate) {
		if _, err := a.bulk(ctx, colMessages, chunk); err != nil {
			return err
		}
	}
	return nil
}

// insert inserts documents regardless of each other and says, by index, which were there already and which were
// refused.
func (a *Archive) insert(ctx context.Context, collection string, docs []any) (there []int, refused map[int]error, err error) {
	ctx, cancel := a.bounded(ctx)
	defer cancel()
	_, err = a.db.Collection(collection).InsertMany(ctx, docs, options.InsertMany().SetOrdered(false))
	return sortOut(err)
}

// bulk updates at most maxUpdate documents regardless of each other and says, by index, which were refused.
func (a *Archive) bulk(ctx context.Context, collection string, models []mongo.WriteModel) (refused map[int]error, err error) {
	ctx, cancel := a.bounded(ctx)
	defer cancel()
	_, err = a.db.Collection(collection).BulkWrite(ctx, models, options.BulkWrite().SetOrdered(false))
	_, refused, err = sortOut(err)
	return refused, err
}

// sortOut reads the outcome of an unordered bulk write.
func sortOut(err error) (there []int, refused map[int]error, away error) {
	if err == nil {
		return nil, nil, nil
	}
	var bulk mongo.BulkWriteException
	if !errors.As(err, &bulk) {
		return nil, nil, err
	}
	if bulk.WriteConcernError != nil {
		return nil, nil, fmt.Errorf("not on a majority: code %d", bulk.WriteConcernError.Code)
	}
	refused = map[int]error{}
	for _, e := range bulk.WriteErrors {
		switch {
		case e.Code == codeDuplicate:
			there = append(there, e.Index)
		case slices.Contains(transient, e.Code):
			return nil, nil, fmt.Errorf("MongoDB cannot write: code %d", e.Code)
		default:
			refused[e.Index] = fmt.Errorf("refused by MongoDB: code %d", e.Code) // its text may quote the document
		}
	}
	return there, refused, nil
}

// SaveSessions writes documents of sessions: new ones are inserted, others updated unless what is stored is newer by
// seq. An error that matches sessionstore.ErrArchive says that MongoDB is away; any other names the sessions whose
// documents it refuses, all others being written.
func (a *Archive) SaveSessions(ctx context.Context, docs []sessionstore.SessionDoc) error {
	var refused []error
	for chunk := range slices.Chunk(newest(docs), maxInsert) {
		bad, err := a.saveSessions(ctx, chunk)
		if err != nil {
			return away(ctx, fmt.Sprintf("save %d sessions", len(docs)), err)
		}
		refused = append(refused, bad...)
	}
	return errors.Join(refused...)
}

// newest keeps one document per session, so that one bulk never writes the same one twice.
func newest(docs []sessionstore.SessionDoc) []sessionstore.SessionDoc {
	at := make(map[string]int, len(docs))
	out := make([]sessionstore.SessionDoc, 0, len(docs))
	for _, d := range docs {
		i, seen := at[d.Session.ID]
		switch {
		case !seen:
			at[d.Session.ID] = len(out)
			out = append(out, d)
		case d.Session.Seq >= out[i].Session.Seq:
			out[i] = d
		}
	}
	return out
}

func (a *Archive) saveSessions(ctx context.Context, docs []sessionstore.SessionDoc) (bad []error, err error) {
	now := time.Now()
	rows := make([]sessionDoc, len(docs))
	inserts := make([]any, len(docs))
	for i, d := range docs {
		rows[i] = newSessionDoc(d, now)
		inserts[i] = rows[i]
	}
	there, refused, err := a.insert(ctx, colSessions, inserts)
	if err != nil {
		return nil, err
	}
	for i, err := range refused {
		bad = append(bad, fmt.Errorf("insert session %s: %w", rows[i].ID, err))
	}
	var old []sessionDoc
	for _, i := range there {
		old = append(old, rows[i])
	}
	for chunk := range slices.Chunk(old, maxUpdate) {
		more, err := a.update(ctx, chunk)
		if err != nil {
			return nil, err
		}
		bad = append(bad, more...)
	}
	return bad, nil
}

// maxUpdate is how many documents are updated in one command. FerretDB keeps a cursor open for each update until the
// end of the command and has a pool of 100 connections: two replicas with more than that wait for each other for ever.
const maxUpdate = 20

// update sets the fields of documents that exist, only ever forward. On MongoDB the filter sees to that, also against
// a writer that was paused and comes back. FerretDB would scan the collection for such a filter, and has one writer
// per document anyway, so there what is stored is read before.
func (a *Archive) update(ctx context.Context, rows []sessionDoc) (bad []error, err error) {
	if len(rows) == 0 {
		return nil, nil
	}
	kind, err := a.kind(ctx)
	if err != nil {
		return nil, err
	}
	var stored []*sessionDoc
	if kind == serverFerret {
		all := make([]string, len(rows))
		for i, d := range rows {
			all[i] = d.ID
		}
		if stored, err = oneByOne[sessionDoc](ctx, a, querySession, all); err != nil {
			return nil, err
		}
	}
	var models []mongo.WriteModel
	var ids []string
	for i, d := range rows {
		filter := querySession.filter([]any{d.ID})
		if kind != serverFerret {
			filter = append(filter, bson.E{Key: "last_seq", Value: bson.D{{Key: "$lte", Value: d.LastSeq}}})
		} else if stored[i] == nil || stored[i].LastSeq > d.LastSeq {
			continue
		}
		set, err := d.update()
		if err != nil {
			bad = append(bad, err)
			continue
		}
		models = append(models, mongo.NewUpdateOneModel().SetFilter(filter).SetUpdate(set))
		ids = append(ids, d.ID)
	}
	if len(models) == 0 {
		return bad, nil
	}
	refused, err := a.bulk(ctx, colSessions, models)
	for i, err := range refused {
		bad = append(bad, fmt.Errorf("update session %s: %w", ids[i], err))
	}
	return bad, err
}
