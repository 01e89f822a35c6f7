// Package live keeps sessions in Redis for as long as they matter to anyone.
//
// What is shared by replicas is here and nowhere else: who is connected, what was said and is not in MongoDB yet,
// which answer is being produced and by whom, who owns the session, what is due when. Every change is one Lua script
// on keys of one hash slot, so the same code runs on one Redis, behind Sentinel and on a cluster.
//
// What a caller may rely on:
//
//   - Order: append gives every durable event its seq, stores it and publishes it in one step. Within a session seqs
//     rise by one, but for the jump of a new epoch, and are never given twice.
//   - Loss: an event is in the session's log and in the partition's WAL when its append returns. The bus may lose
//     what is published; the log does not, and Read continues from any position or says that it cannot.
//   - Doubling: every method may be repeated after ErrAway, which means "outcome unknown". The second time has no
//     further effect.
//   - Fencing: whoever produces an answer holds a token that every chunk and the final event must show. It changes
//     when the answer is stolen, cut or released, and then the old holder gets ErrFenced.
//   - Holds: a session has one admin at a time, who knows it by a fence. A hold that is not renewed lapses; it ends by
//     leave, lapse, steal or the session's end, each of which is an event.
//   - Secrecy: bodies are sealed with the session's data key before they leave the process. Scripts see ids, times,
//     numbers and header fragments.
//   - Concurrency: all methods of Store may be called concurrently, by any number of replicas.
//   - Lifetime: a session's keys live as long as it is active or not all of it is in MongoDB, and 30 minutes longer.
package live
