package archive

import (
	"fmt"
	"slices"

	"go.mongodb.org/mongo-driver/v2/bson"
)

// query is the shape of a read: which fields it fixes, which it bounds, how it sorts. Filters and sorts are built from
// it alone, so that the test that looks for an index for every shape looks at what really runs.
type query struct {
	name       string
	collection string
	equal      []string // fields with one value each
	sort       bson.D   // field: 1 or -1; together with equal it must be a prefix of an index
	bounds     []string // fields with a lower or upper bound
}

// The queries of this package.
var (
	queryMessages = query{
		name: "messages of a session, newest first", collection: colMessages,
		equal: []string{"session_id"}, sort: bson.D{{Key: "seq", Value: -1}}, bounds: []string{"seq"},
	}
	queryMessage  = query{name: "one message", collection: colMessages, equal: []string{"_id"}}
	querySession  = query{name: "one session", collection: colSessions, equal: []string{"_id"}}
	querySessions = query{
		name: "sessions of a user, latest activity first", collection: colSessions,
		equal: []string{"user_id"}, sort: bson.D{{Key: "last_activity", Value: -1}, {Key: "_id", Value: 1}},
		bounds: []string{"last_activity", "message_count"},
	}
)

var queries = []query{queryMessages, queryMessage, querySession, querySessions}

// index is an index that EnsureIndexes makes.
type index struct {
	collection string
	keys       bson.D
}

// indexes besides those on _id, which are always there: the equal fields, then the sort, then bounds.
var indexes = []index{
	{colMessages, bson.D{{Key: "session_id", Value: 1}, {Key: "seq", Value: -1}}},
	{colSessions, bson.D{
		{Key: "user_id", Value: 1}, {Key: "last_activity", Value: -1}, {Key: "_id", Value: 1}, {Key: "message_count", Value: 1},
	}},
}

// bound is a condition like seq < 7.
type bound struct {
	field, op string
	value     any
}

// filter fixes the equal fields to values, in their order, and adds bounds. It panics on what the shape does not
// declare, which is a programming error that any test of the query shows.
func (q query) filter(values []any, bounds ...bound) bson.D {
	if len(values) != len(q.equal) {
		panic(fmt.Sprintf("query %q has %d equal fields, not %d", q.name, len(q.equal), len(values)))
	}
	var f bson.D
	for i, field := range q.equal {
		f = append(f, bson.E{Key: field, Value: values[i]})
	}
	for _, b := range bounds {
		if !slices.Contains(q.bounds, b.field) {
			panic(fmt.Sprintf("query %q has no bound on %s", q.name, b.field))
		}
		f = append(f, bson.E{Key: b.field, Value: bson.D{{Key: b.op, Value: b.value}}})
	}
	return f
}

// after is the condition for what the sort puts behind the given sort values: the next keyset page.
func (q query) after(values ...any) bson.E {
	if len(values) != len(q.sort) {
		panic(fmt.Sprintf("query %q sorts by %d fields, not %d", q.name, len(q.sort), len(values)))
	}
	var or bson.A
	for i, s := range q.sort {
		var clause bson.D
		for j := range i {
			clause = append(clause, bson.E{Key: q.sort[j].Key, Value: values[j]})
		}
		op := "$gt"
		if s.Value == -1 {
			op = "$lt"
		}
		or = append(or, append(clause, bson.E{Key: s.Key, Value: bson.D{{Key: op, Value: values[i]}}}))
	}
	return bson.E{Key: "$or", Value: or}
}
