package sessionstore

import (
	"bytes"
	"strconv"
)

var deltaField = []byte(`"delta":"`)

// DeltaOf returns the text in the opened body fragment of a chunk, escaped and without its quotes. It is nil if there is
// more in the body, or less: such a chunk must stay as it is.
func DeltaOf(body []byte) []byte {
	text, ok := bytes.CutPrefix(body, deltaField)
	if !ok {
		return nil
	}
	for i := 0; i < len(text); i++ {
		switch text[i] {
		case '\\':
			i++
		case '"':
			if i == len(text)-1 {
				return text[:i:i]
			}
			return nil
		}
	}
	return nil
}

// Merge makes one frame of consecutive chunks of one attempt at an answer: last is the frame of the last one and delta
// its Delta, text the Deltas of all. The frame is that of last with the whole text, and says where it begins:
// `first_chunk` is the number of the first one. If that one is a reset, so is the frame.
func Merge(last, delta []byte, first int, reset bool, text []byte) []byte {
	head := last[:len(last)-len(delta)-len(`"}`)]
	b := make([]byte, 0, len(head)+len(text)+len(`","first_chunk":1234567890}`))
	b = append(b, head...)
	b = append(b, text...)
	if reset {
		return append(b, `","reset":true}`...)
	}
	b = append(b, `","first_chunk":`...)
	b = strconv.AppendInt(b, int64(first), 10)
	return append(b, '}')
}
