//go:build faults

package e2e

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"github.com/stretchr/testify/require"
	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"
	mongooptions "go.mongodb.org/mongo-driver/v2/mongo/options"

	"github.com/real-rm/chatbox/server/chat"
	"github.com/real-rm/chatbox/sessionstore"
)

// dump is the archive with all messages read at once: FerretDB reads the whole collection for those of one session.
type dump struct {
	chat.StoredHistory
	messages map[string][]sessionstore.Stored // by session, in order
}

func (c *cluster) dump() *dump {
	c.t.Helper()
	client, err := mongo.Connect(mongooptions.Client().ApplyURI(fmt.Sprintf("mongodb://127.0.0.1:%d", c.mongoPort)))
	require.NoError(c.t, err)
	defer func() { _ = client.Disconnect(context.Background()) }()
	cur, err := client.Database("chat").Collection("messages").Find(c.t.Context(), bson.D{})
	require.NoError(c.t, err)
	var rows []struct {
		SessionID string `bson:"session_id"`
		Epoch     string `bson:"epoch"`
		Seq       int64  `bson:"seq"`
		H         string `bson:"h"`
		C         []byte `bson:"c"`
	}
	require.NoError(c.t, cur.All(c.t.Context(), &rows))
	d := &dump{StoredHistory: c.archive, messages: map[string][]sessionstore.Stored{}}
	for _, r := range rows {
		d.messages[r.SessionID] = append(d.messages[r.SessionID], sessionstore.Stored{
			SessionID: r.SessionID, Epoch: r.Epoch, Seq: r.Seq, H: []byte(r.H), C: r.C,
		})
	}
	for _, of := range d.messages {
		slices.SortFunc(of, func(a, b sessionstore.Stored) int { return cmp.Compare(a.Seq, b.Seq) })
	}
	return d
}

// Messages returns all of a session; the limit is not looked at.
func (d *dump) Messages(_ context.Context, sid string, before int64, _ int) ([]sessionstore.Stored, error) {
	return slices.DeleteFunc(slices.Clone(d.messages[sid]), func(s sessionstore.Stored) bool { return before > 0 && s.Seq >= before }), nil
}
