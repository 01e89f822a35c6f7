package llm

import "time"

func (c *call) replace(t string) error {
	c.dog.alive()
	if c.first == 0 {
		c.first = max(time.Since(c.start), 1)
	}
	var whole counter
	if whole.add(t); whole.tokens() > c.out.tokens() {
		c.out = whole
	}
	c.emitE = c.emit(Delta{Text: t, Replace: true})
	return c.emitE
}

func (c *call) file(f File) error {
	c.dog.alive()
	c.emitE = c.emit(Delta{File: &f})
	return c.emitE
}
