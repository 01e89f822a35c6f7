package main

import (
	"fmt"
	"io"
	"log"
	"os"
	"path/filepath"
	"time"

	"github.com/emersion/go-smtp"
)

// newMailSink is an SMTP server that accepts every mail and writes it to a directory as an .eml file, which any mail
// program opens. Serve and Close are the caller's.
func newMailSink(dir string) (*smtp.Server, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make mail directory: %w", err)
	}
	s := smtp.NewServer(smtp.BackendFunc(func(*smtp.Conn) (smtp.Session, error) { return mailSession{dir}, nil }))
	s.Domain = "localhost"
	s.MaxMessageBytes = 32 << 20
	s.ReadTimeout, s.WriteTimeout = time.Minute, time.Minute
	s.ErrorLog = log.New(io.Discard, "", 0)
	return s, nil
}

// mailSession is one SMTP conversation.
type mailSession struct{ dir string }

func (mailSession) Reset()                               {}
func (mailSession) Logout() error                        { return nil }
func (mailSession) Mail(string, *smtp.MailOptions) error { return nil }
func (mailSession) Rcpt(string, *smtp.RcptOptions) error { return nil }

// Data stores one mail. It appears under its final name only when it is complete.
func (s mailSession) Data(r io.Reader) error {
	f, err := os.CreateTemp(s.dir, ".mail-*")
	if err != nil {
		return fmt.Errorf("store mail: %w", err)
	}
	defer func() { _ = os.Remove(f.Name()) }() // gone already when all went well
	_, err = io.Copy(f, r)
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return fmt.Errorf("store mail: %w", err)
	}
	name := time.Now().UTC().Format("20060102-150405.000000000") + ".eml"
	return os.Rename(f.Name(), filepath.Join(s.dir, name))
}
