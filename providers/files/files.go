// Package files takes in files from outside: what models have made, and what is behind addresses that nobody vouches
// for. What a caller may rely on:
//
//   - A Fetcher opens no connection to an address that is not on the open internet, whatever names, redirects or
//     name servers say: each connection is checked when its address is final, right before it is opened. It sends
//     no cookie, no credential and no referrer, and uses no proxy of the environment.
//   - Nothing is read without an end: every file has a limit in bytes and every transfer one in time, and a file that
//     is longer, or shorter than announced, is an error, never a shorter file.
//   - The type of a file is that of its content, never the one that it was announced with.
//   - An Intake gives each file of an answer to the store, or passes on a checked https link, or says why not. What
//     the store has refused is never passed on as a link.
//   - Errors of this package hold neither addresses nor names nor contents of files. Those of a Store and of Made.Open
//     are passed on as they are.
//
// Nothing is remembered between calls, not even a connection. All methods may be called concurrently.
package files

import (
	"bufio"
	"errors"
	"io"
	"path"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/gabriel-vasile/mimetype"
)

// ErrTooLarge is the error of reading a file beyond its limit.
var ErrTooLarge = errors.New("file is larger than allowed")

const (
	sniffed  = 3072 // bytes that decide on the type
	maxName  = 120  // of a file, in characters
	noName   = "file"
	maxExt   = 12 // longest extension that survives the cutting of a name
	ellipsis = "…"
)

// typeOf finds out the type of a file by its first bytes, which stay unread.
func typeOf(r *bufio.Reader) (string, error) {
	head, err := r.Peek(sniffed)
	if err != nil && !errors.Is(err, io.EOF) {
		return "", err
	}
	return mimetype.Detect(head).String(), nil
}

// capped reads at most a number of bytes and fails if there are more.
type capped struct {
	r    io.Reader
	left int64
	err  error // that ended reading, other than the end of the file
}

func (c *capped) Read(p []byte) (int, error) {
	if c.err != nil {
		return 0, c.err
	}
	if int64(len(p)) > c.left+1 {
		p = p[:c.left+1] // one more, to see whether there is more
	}
	n, err := c.r.Read(p)
	if c.left -= int64(n); c.left < 0 {
		n, err = n-1, ErrTooLarge
		c.left = 0
	}
	if err != nil && !errors.Is(err, io.EOF) {
		c.err = err
	}
	return n, err
}

// cleanName makes a name for people of what a provider or an address calls a file: without folders, without characters
// that do not show or that turn the direction of writing, of bounded length. A file without a name gets one by its type.
func cleanName(name, typ string) string {
	name = path.Base(strings.ReplaceAll(name, `\`, "/"))
	name = strings.Map(func(r rune) rune {
		if r == utf8.RuneError || r == '/' || unicode.Is(unicode.C, r) || unicode.Is(unicode.Zl, r) || unicode.Is(unicode.Zp, r) {
			return -1
		}
		return r
	}, name)
	name = strings.Trim(name, ". \t")
	if name == "" {
		name = noName
		if m := mimetype.Lookup(typ); m != nil {
			name += m.Extension()
		}
	}
	runes := []rune(name)
	if len(runes) <= maxName {
		return name
	}
	ext := []rune(path.Ext(name))
	if len(ext) > maxExt {
		ext = nil
	}
	return string(runes[:maxName-len(ext)-1]) + ellipsis + string(ext)
}
