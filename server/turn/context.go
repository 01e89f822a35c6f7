package turn

import (
	"fmt"
	"strings"

	"github.com/real-rm/chatbox/providers/llm"
)

// Of a model whose settings do not say.
const (
	defaultContext = 32000 // tokens that it reads and writes
	defaultOutput  = 4096  // tokens kept free for the answer, at most a quarter of the former
)

const (
	perMessage = 4   // tokens of a message beside its text
	perRequest = 3   // tokens of a request beside its messages
	stepShare  = 4   // the oldest turns go in steps of this part of the window
	spare      = 5   // per cent of the window that estimates may be wrong by
	smallest   = 128 // tokens; less is no window
)

// line is a message of the conversation and the newest of the events that made it what it is.
type line struct {
	llm.Message
	seq int64 // 0: of none
}

// window fits a conversation into what a model can read. Its unit is the estimated token: estimates of a model that are
// known to be too low make the window smaller instead.
//
// The newest turns are kept whole. Of what is too much the oldest turns go, each question with its answers, in steps of
// a quarter of the window: so the beginning stays the same for many turns, and what the provider has cached of it stays
// of use. A message that would fill more than half of the window is cut in its middle. The system prompt always stays.
type window struct{ tokens int }

// newWindow is the window of a model of which contextTokens and maxOutput are known, or 0, and whose tokens are factor
// times the estimate. The factor is taken in quarters, rounded up: one that wanders must not move the window.
func newWindow(contextTokens, maxOutput int, factor float64) window {
	if contextTokens <= 0 {
		contextTokens = defaultContext
	}
	if maxOutput <= 0 {
		maxOutput = min(defaultOutput, contextTokens/4)
	}
	quarters := max(4, int(factor*4+0.999))
	room := max(contextTokens-maxOutput, contextTokens/4) * (100 - spare) / 100
	return window{tokens: max(room*4/quarters, smallest)}
}

// halved is the window to try again with after a model has refused what was sent as too long.
func (w window) halved(sent []line) window {
	return window{tokens: max(min(w.tokens, total(sent)+perRequest)/2, smallest)}
}

// fit returns the conversation as it is sent, so that reserve tokens more fit in after it.
func (w window) fit(lines []line, reserve int) []line {
	var system []line
	if len(lines) > 0 && lines[0].Role == llm.RoleSystem {
		system, lines = lines[:1:1], lines[1:]
	}
	room := max(w.tokens-perRequest-total(system), w.tokens/4)
	lines = shortened(lines, room/2)
	room = max(room-reserve, w.tokens/4)
	units := turnsOf(lines)
	if over := total(lines) - room; over > 0 {
		step := max(w.tokens/stepShare, 1)
		drop, gone := (over+step-1)/step*step, 0
		for len(units) > 1 && gone < drop {
			gone += total(units[0])
			units = units[1:]
		}
	}
	out := system
	for i, unit := range units {
		if i == len(units)-1 && total(unit) > room {
			unit = shortened(unit, room/len(unit))
		}
		out = append(out, unit...)
	}
	return out
}

// turnsOf splits a conversation into turns: what a user asked, and what was answered until they asked again. Questions
// that are answered together are one turn.
func turnsOf(lines []line) [][]line {
	var out [][]line
	for i, l := range lines {
		if i == 0 || l.Role == llm.RoleUser && lines[i-1].Role != llm.RoleUser {
			out = append(out, nil)
		}
		out[len(out)-1] = append(out[len(out)-1], l)
	}
	return out
}

// shortened cuts messages that are longer than limit tokens.
func shortened(lines []line, limit int) []line {
	out := make([]line, len(lines))
	for i, l := range lines {
		l.Content = middleOut(l.Content, limit-perMessage)
		out[i] = l
	}
	return out
}

// middleOut cuts a text to so many tokens: its beginning and its end stay, a marker says how much is missing.
func middleOut(text string, tokens int) string {
	if llm.EstimateTokens(text) <= tokens {
		return text
	}
	runes := []rune(text)
	cut := func(side int) string {
		return fmt.Sprintf("%s\n[… %d characters left out …]\n%s",
			string(runes[:side]), len(runes)-2*side, string(runes[len(runes)-side:]))
	}
	low, high := 0, len(runes)/2 // characters on either side
	for low < high {
		mid := (low + high + 1) / 2
		if llm.EstimateTokens(cut(mid)) <= tokens {
			low = mid
		} else {
			high = mid - 1
		}
	}
	return cut(low)
}

// total is what messages cost, in estimated tokens.
func total(lines []line) int {
	n := 0
	for _, l := range lines {
		n += perMessage + llm.EstimateTokens(l.Content)
	}
	return n
}

// fileNote stands for a file in a conversation whose model does not see it.
func fileNote(name string) string {
	if name = plain(name); name == "" {
		return "[file]"
	}
	return "[file " + name + "]"
}

// plain makes a name that people have chosen one that cannot be taken for anything else: one line, without brackets.
func plain(name string) string {
	name = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r == '[' || r == ']' || r == '\u2028' || r == '\u2029' {
			return ' '
		}
		return r
	}, name)
	const most = 120
	if runes := []rune(name); len(runes) > most {
		name = string(runes[:most])
	}
	return strings.Join(strings.Fields(name), " ")
}
