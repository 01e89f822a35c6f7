package llmfake

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// script is a parsed command.
type script struct {
	command string // without the exclamation mark; empty: the ordinary reply
	n       int    // count, or status for error; -1: not given
	delay   time.Duration
	delayed bool    // delay was given
	word    string  // KIND of mid and fail, "headers" of stall, "expired" of file
	code    string  // of error
	retry   float64 // of error, seconds
	times   int     // fail so often; 0: always
	drip    int     // bytes in a write; 0: whole events
	as      string  // in the manner of which server
	app     string  // kind of Dify app
}

var commands = map[string]bool{"tokens": true, "slow": true, "big": true, "echo": true, "reason": true, "length": true,
	"refuse": true, "filter": true, "nousage": true, "file": true, "image": true, "replace": true, "pause": true,
	"complete": true, "forget": true, "error": true, "stall": true, "stallmid": true, "cut": true, "abort": true,
	"mid": true, "fail": true}

// parseScript reads a command from the first line of a user's text. Anything that is none gives the ordinary reply.
func parseScript(text string) script {
	s := script{n: -1}
	line, _, _ := strings.Cut(strings.TrimSpace(text), "\n") // what follows may be anything, cut by whoever asks
	fields := strings.Fields(line)
	if len(fields) == 0 || !strings.HasPrefix(fields[0], "!") || !commands[fields[0][1:]] {
		return s
	}
	s.command = fields[0][1:]
	for _, f := range fields[1:] {
		s.argument(f)
	}
	return s
}

func (s *script) argument(f string) {
	if name, value, ok := strings.Cut(f, "="); ok {
		switch name {
		case "retry":
			s.retry, _ = strconv.ParseFloat(value, 64)
		case "times":
			s.times, _ = strconv.Atoi(value)
		case "code":
			s.code = value
		case "drip":
			s.drip, _ = strconv.Atoi(value)
		case "as":
			s.as = value
		case "app":
			s.app = value
		}
		return
	}
	if n, err := strconv.Atoi(f); err == nil {
		if s.n < 0 && s.command != "slow" {
			s.n = n
		} else {
			s.delay, s.delayed = time.Duration(n)*time.Millisecond, true
		}
		return
	}
	if d, err := time.ParseDuration(f); err == nil {
		s.delay, s.delayed = d, true
		return
	}
	s.word = f
}

// count is n, or def when none was given.
func (s script) count(def int) int {
	if s.n < 0 {
		return def
	}
	return s.n
}

// plan is what an answer consists of, before it is streamed or sent whole.
type plan struct {
	reasoning []string
	pieces    []string
	refusal   bool // the pieces are a refusal
	finish    string
	delay     time.Duration
	usage     bool
	end       string // how it ends when not with finish: stall, cut, abort, mid, fail
	word      string
	as        string
	file      string // "file" or "image": what is made beside the text
	replace   bool   // the text is taken back
	pause     bool   // a person is waited for
	after     string // complete or forget: what becomes of a Dify conversation
}

// How answers end, in the words of Chat Completions.
const (
	finishStop   = "stop"
	finishLength = "length"
	finishFilter = "content_filter"
)

func (a *answer) planned(sc script) plan {
	p := plan{finish: finishStop, delay: a.s.opts.Delay, usage: true, as: sc.as, word: sc.word}
	if sc.delayed {
		p.delay = sc.delay
	}
	switch sc.command {
	case "tokens":
		p.pieces = numbered(sc.count(10))
	case "slow":
		if !sc.delayed {
			p.delay = 200 * time.Millisecond
		}
		p.pieces = a.reply()
	case "big":
		p.pieces, p.delay = kibibytes(sc.count(1)), 0
	case "echo":
		b, _ := json.Marshal(a.ask.messages) // strings only; cannot fail
		p.pieces = pieces(string(b))
	case "reason":
		p.reasoning, p.pieces = numbered(sc.count(3)), a.reply()
	case "length":
		p.pieces, p.finish = numbered(5), finishLength
	case "filter":
		p.pieces, p.finish, p.replace = numbered(3), finishFilter, true
	case "refuse":
		p.pieces, p.refusal = pieces("I'm sorry, I can't help with that."), true
	case "nousage":
		p.pieces, p.usage = a.reply(), false
	case "file", "image":
		p.pieces, p.file = a.reply(), sc.command
	case "replace":
		p.pieces, p.replace = numbered(sc.count(3)), true
	case "pause":
		p.pieces, p.pause = numbered(sc.count(3)), true
	case "complete", "forget":
		p.pieces, p.after = a.reply(), sc.command
	case "stall":
		p.end = "stall"
	case "stallmid":
		p.pieces, p.end = numbered(sc.count(3)), "stall"
	case "cut", "abort", "mid", "fail":
		p.pieces, p.end = numbered(sc.count(3)), sc.command
	default:
		p.pieces = a.reply()
	}
	if n := a.ask.limit; n > 0 && n < len(p.pieces) && p.end == "" {
		p.pieces, p.finish = p.pieces[:n], finishLength
	}
	return p
}

// reply is the ordinary answer in Markdown.
func (a *answer) reply() []string {
	quote := a.ask.question
	if r := []rune(quote); len(r) > 200 {
		quote = string(r[:200]) + "…"
	}
	quote = strings.ReplaceAll(quote, "\n", "\n> ")
	n := a.ask.earlier()
	noun := "messages"
	if n == 1 {
		noun = "message"
	}
	with := ""
	switch f := a.ask.shown; {
	case f == 1:
		with = "With it came **1 file**. "
	case f > 1:
		with = fmt.Sprintf("With it came **%d files**. ", f)
	}
	return pieces(fmt.Sprintf("Hello! You wrote:\n\n> %s\n\n%sI have read **%d earlier %s** of this conversation. "+
		"I am a scripted model, so here is all I know:\n\n- I answer *word by word*\n- `!tokens 20` makes me count\n- "+
		"`!slow`, `!error 429` and `!stall` make me fail like a real one\n\nWhat else would you like to know?", quote, with, n, noun))
}

// numbered returns "t1 ", "t2 ", … "tN".
func numbered(n int) []string {
	n = min(max(n, 0), 1_000_000)
	out := make([]string, n)
	for i := range out {
		out[i] = "t" + strconv.Itoa(i+1)
		if i < n-1 {
			out[i] += " "
		}
	}
	return out
}

// kibibytes returns numbered words of n KiB altogether, in pieces of about 64 bytes.
func kibibytes(n int) []string {
	size := min(max(n, 0), 16<<10) << 10
	var out []string
	var b strings.Builder
	for word, left := 1, size; left > 0; word++ {
		t := "word" + strconv.Itoa(word) + " "
		t = t[:min(len(t), left)]
		left -= len(t)
		b.WriteString(t)
		if b.Len() >= 64 || left == 0 {
			out = append(out, b.String())
			b.Reset()
		}
	}
	return out
}

// pieces cuts a text after each space, so that the pieces joined are the text.
func pieces(text string) []string { return strings.SplitAfter(text, " ") }
