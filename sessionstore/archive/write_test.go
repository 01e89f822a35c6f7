package archive

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.mongodb.org/mongo-driver/v2/mongo"

	"github.com/real-rm/chatbox/internal/rig"
	"github.com/real-rm/chatbox/internal/rig/rigtest"
	"github.com/real-rm/chatbox/sessionstore"
)

// A document goes forward whichever way the server needs it done: by the filter of the update (MongoDB) or by reading
// first (FerretDB).
func TestUpdate_neverGoesBackOnEitherServer(t *testing.T) {
	uri := rig.FerretURI(rigtest.Ferret(t))
	for name, kind := range map[string]serverKind{"MongoDB": serverMongo, "FerretDB": serverFerret, "asked for": serverUnknown} {
		t.Run(name, func(t *testing.T) {
			a, err := New(Options{URI: uri})
			require.NoError(t, err)
			defer func() { _ = a.Close(context.Background()) }()
			a.server.Store(int32(kind))
			id := "p01-" + name
			save := func(seq, messages int64) {
				require.NoError(t, a.SaveSessions(t.Context(), []sessionstore.SessionDoc{{Session: sessionstore.Session{
					ID: id, UserID: "u", Position: sessionstore.Position{Epoch: "1-a", Seq: seq}, Messages: messages,
				}}}))
			}
			for _, step := range [][4]int64{{5, 5, 5, 5}, {3, 3, 5, 5}, {5, 6, 5, 6}, {9, 8, 9, 8}, {8, 1, 9, 8}} {
				save(step[0], step[1])
				d, found, err := a.Session(t.Context(), id)
				require.NoError(t, err)
				require.True(t, found)
				require.Equal(t, step[2], d.Session.Seq)
				require.Equal(t, step[3], d.Session.Messages)
			}
			if kind == serverUnknown {
				require.EqualValues(t, serverFerret, a.server.Load())
			}
		})
	}
}

func TestSortOut_tellsTheEntryFromTheServer(t *testing.T) {
	bulk := func(codes ...int) mongo.BulkWriteException {
		var e mongo.BulkWriteException
		for i, c := range codes {
			e.WriteErrors = append(e.WriteErrors, mongo.BulkWriteError{WriteError: mongo.WriteError{Index: i, Code: c, Message: "quotes the secret"}})
		}
		return e
	}
	there, refused, err := sortOut(bulk(codeDuplicate, 121, codeDuplicate))
	require.NoError(t, err)
	require.Equal(t, []int{0, 2}, there)
	require.Len(t, refused, 1)
	require.EqualError(t, refused[1], "refused by MongoDB: code 121")

	_, _, err = sortOut(bulk(codeDuplicate, 189))
	require.EqualError(t, err, "MongoDB cannot write: code 189")

	unsure := bulk(codeDuplicate)
	unsure.WriteConcernError = &mongo.WriteConcernError{Code: 64}
	_, _, err = sortOut(unsure)
	require.Error(t, err, "there, but perhaps not on a majority")

	network := errors.New("connection reset")
	_, _, err = sortOut(network)
	require.ErrorIs(t, err, network)

	there, refused, err = sortOut(nil)
	require.NoError(t, err)
	assert.Empty(t, there)
	assert.Empty(t, refused)
}

func TestDuration_leavesOutTheTimeInBetween(t *testing.T) {
	at := func(minutes int) time.Time { return time.Unix(0, 0).Add(time.Duration(minutes) * time.Minute) }
	s := sessionstore.Session{Start: at(0), End: at(60)}
	require.Equal(t, time.Hour, duration(s, nil))
	require.Equal(t, time.Hour, duration(s, []sessionstore.Interval{{Start: at(0), End: at(45)}}), "end is the end of the window, not of the last socket")
	require.Equal(t, 20*time.Minute, duration(s, []sessionstore.Interval{{Start: at(0), End: at(10)}, {Start: at(50), End: at(60)}}))
	require.Zero(t, duration(sessionstore.Session{Start: at(5), End: at(1)}, nil))
}
