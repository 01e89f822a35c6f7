package archive

import (
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"go.mongodb.org/mongo-driver/v2/bson"
)

// serves says whether an index finds what q asks for without looking at anything else and without sorting: the equal
// fields come first, in any order, then the sort in its order (or all of it reversed), and the bounds are among the
// keys.
func (ix index) serves(q query) bool {
	if ix.collection != q.collection || len(ix.keys) < len(q.equal)+len(q.sort) {
		return false
	}
	for _, k := range ix.keys[:len(q.equal)] {
		if !slices.Contains(q.equal, k.Key) {
			return false
		}
	}
	same, reversed := true, true
	for i, s := range q.sort {
		k := ix.keys[len(q.equal)+i]
		if k.Key != s.Key {
			return false
		}
		same, reversed = same && k.Value == s.Value, reversed && k.Value != s.Value
	}
	if !same && !reversed {
		return false
	}
	for _, b := range q.bounds {
		if !slices.ContainsFunc(ix.keys, func(k bson.E) bool { return k.Key == b }) {
			return false
		}
	}
	return true
}

func TestQueries_eachHasAnIndexForItsFilterAndSort(t *testing.T) {
	have := append([]index{
		{colMessages, bson.D{{Key: "_id", Value: 1}}},
		{colSessions, bson.D{{Key: "_id", Value: 1}}},
	}, indexes...)
	for _, q := range queries {
		require.True(t, slices.ContainsFunc(have, func(ix index) bool { return ix.serves(q) }), "no index serves %q", q.name)
	}
}

func TestServes_tellsAnIndexThatDoesNotHelp(t *testing.T) {
	asc, desc := func(k string) bson.E { return bson.E{Key: k, Value: 1} }, func(k string) bson.E { return bson.E{Key: k, Value: -1} }
	q := query{collection: "c", equal: []string{"a"}, sort: bson.D{desc("s"), asc("_id")}, bounds: []string{"n"}}
	cases := map[string]struct {
		keys bson.D
		want bool
	}{
		"exact":             {bson.D{asc("a"), desc("s"), asc("_id"), asc("n")}, true},
		"whole sort turned": {bson.D{asc("a"), asc("s"), desc("_id"), asc("n")}, true},
		"half of it turned": {bson.D{asc("a"), asc("s"), asc("_id"), asc("n")}, false},
		"sort before equal": {bson.D{desc("s"), asc("_id"), asc("a"), asc("n")}, false},
		"bound missing":     {bson.D{asc("a"), desc("s"), asc("_id")}, false},
		"bound in between":  {bson.D{asc("a"), asc("n"), desc("s"), asc("_id")}, false},
		"short":             {bson.D{asc("a")}, false},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			require.Equal(t, c.want, index{"c", c.keys}.serves(q))
		})
	}
	require.False(t, index{"other", cases["exact"].keys}.serves(q))
}

func TestQuery_refusesWhatItsShapeDoesNotDeclare(t *testing.T) {
	require.Panics(t, func() { queryMessages.filter(nil) })
	require.Panics(t, func() { queryMessages.filter([]any{"s"}, bound{"content", "$gt", ""}) })
	require.Panics(t, func() { querySessions.after(1) })
}

func TestAfter_isTheLexicographicSuccessor(t *testing.T) {
	require.Equal(t, bson.E{Key: "$or", Value: bson.A{
		bson.D{{Key: "last_activity", Value: bson.D{{Key: "$lt", Value: 7}}}},
		bson.D{{Key: "last_activity", Value: 7}, {Key: "_id", Value: bson.D{{Key: "$gt", Value: "x"}}}},
	}}, querySessions.after(7, "x"))
}
