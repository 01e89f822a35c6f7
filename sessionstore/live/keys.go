package live

import (
	"crypto/rand"
	"encoding/base32"
	"hash/fnv"
	"strconv"
	"strings"
)

// Partitions is how many parts the users are spread over. It is part of the stored format: never changed.
const Partitions = 64

const defaultPrefix = "rt:"

// partition makes the keys of one partition. All of them carry its hash tag, so they live on one node of a cluster.
//
//	inst          string  identity of the primary, written when a replica connects to it   for ever
//	born          string  since when Redis keeps what is written in the partition       for ever
//	wal           stream  durable events that are not in MongoDB yet: k session, e epoch, s seq, h, c; entries are
//	                      deleted by done.lua, nothing else
//	due           zset    end|ask|gen|cut|hold:<sid> -> time at which a keeper must look at it
//	doc           zset    sid -> time at which its MongoDB document should be written
//	on            zset    sid -> latest lease of its sockets: online now
//	live          zset    sid -> end of its reconnect window: active
//	u:<uid>       string  the user's active session                                    until that session ends
//	b:<uid>       hash    d day since 1970 in UTC, n tokens that the user has spent on it   2 days after the last
//	s:<sid>       hash    the session, see sessionKeys                                 as long as the session
//	keeper        string  fencing token of the partition's keeper                      lapses with the keeper
//	dead          stream  entries of the WAL that MongoDB will not take, as in wal, and why  until an operator decides
//	replicas      zset    replica -> end of its lease; one for all, in partition 0     each until it lapses
//	buried        hash    replica -> call that has found its lease lapsed; beside replicas  a minute after the last
//
// Channels, published with PUBLISH, or SPUBLISH on a cluster:
//
//	c:<sid>       the session's events: epoch SP seq SP len(h) SP h c, see parseRecord
//	doc           ids of sessions whose state has changed, see feed; channels and keys do not share names in Redis
//	n:<replica>   the bus' probes
//
// All times are milliseconds of Redis' clock.
type partition string // prefix and hash tag

func partitionKeys(prefix string, p int) partition {
	return partition(prefix + "{" + partitionName(p) + "}:")
}

func (p partition) inst() string              { return string(p) + "inst" }
func (p partition) born() string              { return string(p) + "born" }
func (p partition) wal() string               { return string(p) + "wal" }
func (p partition) due() string               { return string(p) + "due" }
func (p partition) doc() string               { return string(p) + "doc" }
func (p partition) on() string                { return string(p) + "on" }
func (p partition) live() string              { return string(p) + "live" }
func (p partition) user(id string) string     { return string(p) + "u:" + id }
func (p partition) spent(id string) string    { return string(p) + "b:" + id }
func (p partition) keeper() string            { return string(p) + "keeper" }
func (p partition) dead() string              { return string(p) + "dead" }
func (p partition) replicas() string          { return string(p) + "replicas" }
func (p partition) buried() string            { return string(p) + "buried" }
func (p partition) channel(sid string) string { return string(p) + "c:" + sid }

// inbox is the channel of a replica's probes.
func (p partition) inbox(replica string) string { return string(p) + "n:" + replica }

// feed is the channel of the partition's changes. It has the name of the key whose members it announces, so that no
// script needs to be told of it.
func (p partition) feed() string { return p.doc() }

func (p partition) session(sid string) sessionKeys { return sessionKeys(string(p) + "s:" + sid) }

// sessionKeys makes the keys of one session. They have no TTL while it is active or not all of it is in MongoDB.
//
//	s:<sid>       hash    e epoch, s seq, st active|ended, inst, d durable seq, lb bytes in the log; u user id,
//	                      un user name, nm sealed name, key wrapped data key, model; ow owner, aid admin id, an admin
//	                      name (both of the last one), fence of the hold: message id of its admin_join, absent while
//	                      nobody holds it; asst 1, help 1, hw end of the time that help keeps the session;
//	                      ct start, is start of the present interval, et end, la last activity, iv past intervals
//	                      (start-end,…); mc messages, tk tokens, of which ti in, to out and tc from a cache, cl calls of
//	                      providers; free 1: its user's tokens are not limited; cv:<model> conversation that a provider
//	                      remembers: "upto answer id", see sessionstore.Conversation, lost when the session is rebuilt,
//	                      in the clear because it is only an id; rs rm rn sum, maximum and number of response times;
//	                      fd when the feed was last told of an event
//	s:<sid>:log   stream  <seq>-0 -> e, h, c of each durable event
//	s:<sid>:ids   hash    sender:message_id -> seq; answered:message_id -> seq of the answer, of questions that Redis has
//	                      lost and whose answer came back first
//	s:<sid>:ask   zset    message id of a question that the AI owes an answer -> its seq
//	s:<sid>:gen   hash    the answer being produced: aid, state run|cut|done, tok, attempt, chunk, q questions, qn their
//	                      seqs, upto, tko takeovers, stop; calls of providers booked, model and pe estimated prompt tokens
//	                      of the last of them, ba "attempt chunk" when it was booked; sn how many of them have ended, su
//	                      what these cost: "tokens in out cached estimated"; while cut also ck kind of the cause, cid ch cc
//	                      its id in ids, h and c, cw why (its type)
//	s:<sid>:gc    list    "attempt chunk c" of each chunk since the last reset
//	s:<sid>:c     zset    <replica>.<conn> -> lease of the socket; expires with the newest one, so that those of a replica
//	                      that was killed do not stay
type sessionKeys string

func (k sessionKeys) hash() string   { return string(k) }
func (k sessionKeys) log() string    { return string(k) + ":log" }
func (k sessionKeys) ids() string    { return string(k) + ":ids" }
func (k sessionKeys) ask() string    { return string(k) + ":ask" }
func (k sessionKeys) gen() string    { return string(k) + ":gen" }
func (k sessionKeys) chunks() string { return string(k) + ":gc" }
func (k sessionKeys) conns() string  { return string(k) + ":c" }

// all are all keys of the session, for those who set or take away their TTL.
func (k sessionKeys) all() []string {
	return []string{k.hash(), k.log(), k.ids(), k.ask(), k.gen(), k.chunks(), k.conns()}
}

// presenceKeys are the KEYS of touch.lua and gone.lua.
func (p partition) presenceKeys(sid string) []string {
	return []string{p.session(sid).conns(), p.on(), p.live(), p.due()}
}

// appendKeys are KEYS 1-8 of event.lua, enough to write an ordinary event.
func (p partition) appendKeys(sid string) []string {
	k := p.session(sid)
	return append(make([]string, 0, 18), p.inst(), p.wal(), p.due(), p.doc(), k.hash(), k.log(), k.ids(), k.ask())
}

// answerKeys are KEYS 1-10 of event.lua.
func (p partition) answerKeys(sid string) []string {
	k := p.session(sid)
	return append(p.appendKeys(sid), k.gen(), k.chunks())
}

// endKeys are KEYS 1-14 of event.lua and, as 15, what the user has spent.
func (p partition) endKeys(sid, userID string) []string {
	return append(p.eventKeys(sid, userID), p.spent(userID))
}

// beat is a hash: at, when a keeper was last here, back, when one was again after an outage, and until, up to when no
// session expires; milliseconds of Redis.
func (p partition) beat() string { return string(p) + "beat" }

// eventKeys are KEYS 1-14 of event.lua.
func (p partition) eventKeys(sid, userID string) []string {
	return append(p.answerKeys(sid), p.session(sid).conns(), p.on(), p.live(), p.user(userID))
}

// Partition returns the partition of a user, from 0 to Partitions-1.
func Partition(userID string) int {
	h := fnv.New64a()
	_, _ = h.Write([]byte(userID))
	n := h.Sum64()
	return int((n ^ n>>32) % Partitions)
}

// PartitionOf returns the partition that a session id names, and whether it has the form of a session id. What has
// not comes from outside and must not become part of a key.
func PartitionOf(sid string) (int, bool) {
	if len(sid) < 5 || len(sid) > 64 || sid[0] != 'p' || sid[3] != '-' {
		return 0, false
	}
	p, err := strconv.ParseUint(sid[1:3], 10, 8)
	if err != nil || p >= Partitions {
		return 0, false
	}
	for _, c := range []byte(sid[4:]) {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') {
			return 0, false
		}
	}
	return int(p), true
}

var idEncoding = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// newSessionID makes an unguessable id (128 random bits) in the partition.
func newSessionID(p int) string {
	return partitionName(p) + "-" + randomText(16)
}

// randomText returns n random bytes as lower-case text.
func randomText(n int) string {
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails
	return idEncoding.EncodeToString(b)
}

func partitionName(p int) string {
	var b strings.Builder
	b.WriteByte('p')
	if p < 10 {
		b.WriteByte('0')
	}
	b.WriteString(strconv.Itoa(p))
	return b.String()
}
