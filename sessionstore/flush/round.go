package flush

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/real-rm/chatbox/sessionstore"
)

// errRefused ends a round in which MongoDB refused an entry: the next one comes after a pause.
var errRefused = errors.New("an entry was refused")

// round reads every partition once, writes everything in one go and takes it off the WAL. more says that a partition
// had more than fitted. An error means that something is left that must wait a while; the rest was done.
func (f *Flusher) round(ctx context.Context) (more bool, err error) {
	select {
	case f.turn <- struct{}{}:
		defer func() { <-f.turn }()
	case <-ctx.Done():
		return false, ctx.Err()
	}
	read, readErr := f.store.ReadWAL(ctx, f.batch)
	f.noteStore(ctx, readErr)
	if readErr != nil {
		readErr = fmt.Errorf("read WAL: %w", readErr)
		if len(read) == 0 {
			return false, readErr
		}
	}
	batches := slices.Clone(read) // they are cut below
	f.noteRead(batches)
	f.forget(batches)
	more = slices.ContainsFunc(batches, func(b sessionstore.WALBatch) bool { return b.More })

	insertErr := f.insert(ctx, batches)
	if insertErr != nil && !errors.Is(insertErr, errRefused) {
		return false, errors.Join(readErr, insertErr)
	}
	docsErr := f.saveDocs(ctx, batches)
	done, doneErr := f.done(ctx, batches)
	err = errors.Join(readErr, insertErr, docsErr, doneErr)
	if err == nil {
		f.noteFinished()
	}
	return more && done && err == nil, err
}

// insert writes all entries, sets aside those that were refused too often, and cuts every batch before its first
// entry that is not in MongoDB. A cut batch keeps its documents back as well. Where entries were cut the error is
// errRefused; any other error means that nothing may be called done.
func (f *Flusher) insert(ctx context.Context, batches []sessionstore.WALBatch) error {
	var all []sessionstore.WALEntry
	for _, b := range batches {
		all = append(all, b.Entries...)
	}
	if len(all) == 0 {
		return nil
	}
	refused, err := f.archive.InsertMessages(ctx, all)
	f.noteArchive(ctx, err)
	if err != nil {
		return fmt.Errorf("insert messages: %w", err)
	}
	f.count(func(s *Stats) { s.Inserted += int64(len(all) - len(refused)) })
	if len(refused) == 0 {
		clear(f.fails)
		return nil
	}
	var cut error
	at := 0
	for i := range batches {
		n := len(batches[i].Entries)
		if f.cut(ctx, &batches[i], refused, at) {
			cut = errRefused
		}
		at += n
	}
	return cut
}

// cut drops from b what DeadWAL took, and everything from the first entry on that has to be tried again. at is the
// index of b's first entry in refused.
func (f *Flusher) cut(ctx context.Context, b *sessionstore.WALBatch, refused map[int]error, at int) bool {
	keep := make([]sessionstore.WALEntry, 0, len(b.Entries))
	whole := *b
	stopped := false
	for i, e := range whole.Entries {
		key := entryKey{b.Partition, e.ID}
		why, bad := refused[at+i]
		switch {
		case !bad:
			delete(f.fails, key)
			if !stopped {
				keep = append(keep, e)
			}
		case f.refuse(ctx, whole, e, why):
			delete(f.fails, key) // gone from the WAL
		default:
			stopped = true
		}
	}
	b.Entries = keep
	if stopped {
		b.Docs = nil
	}
	return stopped
}

// refuse counts a refusal and, the fifth time, moves the entry to the dead-letter stream. It reports whether the
// entry has left the WAL.
func (f *Flusher) refuse(ctx context.Context, b sessionstore.WALBatch, e sessionstore.WALEntry, why error) bool {
	key := entryKey{b.Partition, e.ID}
	f.fails[key]++
	if f.fails[key] < maxFails {
		return false
	}
	if err := f.store.DeadWAL(ctx, b, e, why.Error()); err != nil {
		f.log.WarnContext(ctx, "entry could not be set aside", keyError, err, keyPartition, b.Partition, keyEntry, e.ID)
		return false
	}
	f.count(func(s *Stats) { s.Dead++ })
	f.log.ErrorContext(ctx, "entry set aside, MongoDB refuses it",
		keyError, why, keyPartition, b.Partition, keyEntry, e.ID, keySession, e.SessionID, keySeq, e.Seq)
	return true
}

// saveDocs writes the documents of all batches. Those that were not written are taken out of their batch, so that they
// come again; messages do not wait for them. The error is that MongoDB is away, not that it refuses a document.
func (f *Flusher) saveDocs(ctx context.Context, batches []sessionstore.WALBatch) error {
	var all []sessionstore.SessionDoc
	for _, b := range batches {
		all = append(all, b.Docs...)
	}
	if len(all) == 0 {
		return nil
	}
	err := f.archive.SaveSessions(ctx, all)
	var refused map[string]error
	if err != nil && !isAway(ctx, err) {
		refused, err = f.saveEach(ctx, batches) // find out which
	}
	f.noteArchive(ctx, err)
	if err != nil {
		for i := range batches {
			batches[i].Docs = nil
		}
		return fmt.Errorf("save sessions: %w", err)
	}
	f.noteDocs(ctx, refused)
	return nil
}

// saveEach writes documents one by one and takes those that are refused out of their batch.
func (f *Flusher) saveEach(ctx context.Context, batches []sessionstore.WALBatch) (refused map[string]error, err error) {
	refused = map[string]error{}
	for i := range batches {
		var saved []sessionstore.SessionDoc
		for _, d := range batches[i].Docs {
			err := f.archive.SaveSessions(ctx, []sessionstore.SessionDoc{d})
			switch {
			case err == nil:
				saved = append(saved, d)
			case isAway(ctx, err):
				return nil, err
			default:
				refused[d.Session.ID] = err
			}
		}
		batches[i].Docs = saved
	}
	return refused, nil
}

func isAway(ctx context.Context, err error) bool {
	return errors.Is(err, sessionstore.ErrArchive) || ctx.Err() != nil
}

// done takes what was written off the WAL, each partition for itself.
func (f *Flusher) done(ctx context.Context, batches []sessionstore.WALBatch) (some bool, err error) {
	var errs []error
	for _, b := range batches {
		if len(b.Entries) == 0 && len(b.Docs) == 0 {
			continue
		}
		if err := f.store.DoneWAL(ctx, b); err != nil {
			// Most likely another replica keeps the partition now. It will write the entries again, which is harmless.
			f.log.DebugContext(ctx, "batch not taken off the WAL", keyError, err, keyPartition, b.Partition)
			errs = append(errs, fmt.Errorf("take partition %d off the WAL: %w", b.Partition, err))
			continue
		}
		some = true
	}
	return some, errors.Join(errs...)
}

// forget drops what is known about entries that are not in the WAL any more, or not ours to keep.
func (f *Flusher) forget(batches []sessionstore.WALBatch) {
	if len(f.fails) == 0 {
		return
	}
	seen := map[entryKey]bool{}
	for _, b := range batches {
		for _, e := range b.Entries {
			seen[entryKey{b.Partition, e.ID}] = true
		}
	}
	for k := range f.fails {
		if !seen[k] {
			delete(f.fails, k)
		}
	}
}
