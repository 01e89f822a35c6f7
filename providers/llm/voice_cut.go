package llm

import (
	"strings"
	"unicode"
)

// cutSpeech cuts a text into pieces of at most limit characters, which together are the text. It cuts behind the last
// sentence that fits, else between words, else anywhere but before a mark that belongs to the character before it.
func cutSpeech(text string, limit int) []string {
	var pieces []string
	rest := []rune(text)
	for len(rest) > limit {
		at := cutAt(rest, limit)
		pieces, rest = append(pieces, string(rest[:at])), rest[at:]
	}
	return append(pieces, string(rest))
}

// cutAt finds where to cut a text that is longer than limit, which is at least 1.
func cutAt(text []rune, limit int) int {
	word, hard := 0, 0
	for i := limit; i > 0; i-- { // text[i] begins the next piece
		switch {
		case sentenceEnds(text, i):
			return i
		case word == 0 && unicode.IsSpace(text[i-1]):
			word = i
		case hard == 0 && !unicode.Is(unicode.M, text[i]) && text[i] != zeroWidthJoiner && text[i-1] != zeroWidthJoiner:
			hard = i
		}
	}
	switch {
	case word > 0:
		return word
	case hard > 0:
		return hard
	default:
		return limit
	}
}

const zeroWidthJoiner = '\u200d'

// sentenceEnds says whether a sentence ends before text[i]: behind its mark, with the quotes and brackets that close it,
// and the space after that. Scripts that write without spaces have marks of their own.
func sentenceEnds(text []rune, i int) bool {
	if text[i-1] == '\n' {
		return true
	}
	spaced := unicode.IsSpace(text[i-1])
	if spaced {
		i--
	}
	for i > 0 && strings.ContainsRune(`"'”’»)]）」』`, text[i-1]) {
		i--
	}
	if i == 0 {
		return false
	}
	return spaced && strings.ContainsRune(".!?…:;؟۔।", text[i-1]) || strings.ContainsRune("。！？", text[i-1])
}
