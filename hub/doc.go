// Package hub keeps this replica's sockets and fans the events of topics out to them.
//
// Order. Durable events of one topic (Seq > 0) reach every client in the order of their seq, without gaps,
// each at most once. What Publish skips is read from the Source; what cannot be read any more is replaced by
// a snapshot, which says so. A client that sent a message itself gets its ack in the event's place. Events
// that are not durable (Seq 0) keep their order among themselves and are never delayed by a gap.
//
// Loss. Nothing durable is skipped silently. A client that falls behind by more than Options.QueueBytes, or
// does not take what it is sent within Options.WriteWait, is closed with CodeSlow and is expected to resume
// from its cursor. Events that are not durable may be lost with the bus; Resync repairs the running answer.
// Chunks of an answer that wait for a slow client are merged into bigger ones (Options.Merge), and left out where a
// reset or the final, which hold the whole text, come behind half of what may wait.
//
// Concurrency. All methods may be called concurrently, from Handler methods too. Publish never waits for a
// socket, a lock held during I/O, or the Source. Locks are taken in the order Hub.mu, topic.mu, Client.mu; the
// locks of the lifetimes, the wheel and the group are leaves.
//
// Lifetime. A client has one permanent goroutine, which reads and is its owner: when it ends it takes the
// client out of its topics, waits for the handler and for every goroutine that works for the client, and calls
// Handler.Closed. Writing, handling and catching up run in goroutines that exist only while there is something
// to do; a frame for a socket with nothing pending is written at once by whoever sends it, as far as that is
// possible without waiting. Run returns when all of them are gone.
package hub
