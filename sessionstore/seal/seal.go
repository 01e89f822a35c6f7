// Package seal keeps message text unreadable outside the process.
//
// Every session has a 32-byte data key. It is wrapped by the operator's Tink keyset and stored wrapped, in the
// session's Redis hash and in its MongoDB document; destroying the wrapped copies makes everything sealed with
// it unreadable for good. Bodies are sealed with AES-256-GCM under the data key, bound to where they belong by
// associated data, so that a stored value cannot be moved to another message or session.
//
// All functions may be called concurrently. Nothing here does I/O.
package seal

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/tink-crypto/tink-go/v2/aead"
	"github.com/tink-crypto/tink-go/v2/insecurecleartextkeyset"
	"github.com/tink-crypto/tink-go/v2/keyset"
	"github.com/tink-crypto/tink-go/v2/tink"

	"github.com/real-rm/chatbox/sessionstore"
)

// version is the first byte of every sealed value.
const version = 1

const headerSize = 1 + keyIDSize

const keyIDSize = 4

// DataKey is the key of one session. It is a plain value, so that idle sessions keep bytes and no cipher objects.
type DataKey [32]byte

// Keyring wraps and unwraps data keys with the operator's keyset.
type Keyring struct {
	primitive tink.AEAD
}

// NewKeyset makes a keyset with one AES-256-GCM key, as base64 of Tink's JSON form. Whoever has it can read
// everything.
func NewKeyset() (string, error) {
	h, err := keyset.NewHandle(aead.AES256GCMKeyTemplate())
	if err != nil {
		return "", fmt.Errorf("make keyset: %w", err)
	}
	var buf bytes.Buffer
	if err := insecurecleartextkeyset.Write(h, keyset.NewJSONWriter(&buf)); err != nil {
		return "", fmt.Errorf("write keyset: %w", err)
	}
	return base64.StdEncoding.EncodeToString(buf.Bytes()), nil
}

// NewKeyring reads a keyset made by NewKeyset, or Tink's JSON form itself. Errors never hold key material.
func NewKeyring(text string) (*Keyring, error) {
	text = strings.TrimSpace(text)
	if text == "" {
		return nil, errors.New("keyset is empty")
	}
	raw := []byte(text)
	if text[0] != '{' {
		var err error
		if raw, err = base64.StdEncoding.DecodeString(text); err != nil {
			return nil, errors.New("keyset is neither base64 nor JSON")
		}
	}
	h, err := insecurecleartextkeyset.Read(keyset.NewJSONReader(bytes.NewReader(raw)))
	if err != nil {
		return nil, errors.New("keyset cannot be read")
	}
	p, err := aead.New(h)
	if err != nil {
		return nil, errors.New("keyset does not hold AEAD keys")
	}
	return &Keyring{primitive: p}, nil
}

// NewDataKey makes the key of a session and its wrapped form.
func (k *Keyring) NewDataKey(sessionID string) (DataKey, []byte, error) {
	var key DataKey
	if _, err := rand.Read(key[:]); err != nil {
		return key, nil, fmt.Errorf("make data key: %w", err)
	}
	wrapped, err := k.primitive.Encrypt(key[:], []byte("key|"+sessionID))
	if err != nil {
		return key, nil, fmt.Errorf("wrap data key: %w", err)
	}
	return key, wrapped, nil
}

// Unwrap returns the data key of a session, or ErrUnsealed.
func (k *Keyring) Unwrap(sessionID string, wrapped []byte) (DataKey, error) {
	var key DataKey
	raw, err := k.primitive.Decrypt(wrapped, []byte("key|"+sessionID))
	if err != nil || len(raw) != len(key) {
		return key, fmt.Errorf("unwrap data key of session %s: %w", sessionID, sessionstore.ErrUnsealed)
	}
	copy(key[:], raw)
	return key, nil
}

// Seal encrypts plain: version, id of the key, nonce, ciphertext. Empty plain stays empty.
func (d DataKey) Seal(plain, ad []byte) []byte {
	if len(plain) == 0 {
		return nil
	}
	id := d.id()
	out := make([]byte, 0, headerSize+12+len(plain)+16)
	out = append(out, version)
	out = append(out, id[:]...)
	return d.cipher().Seal(out, nil, plain, ad)
}

// Open decrypts what Seal made with the same associated data, or returns ErrUnsealed. Empty stays empty.
func (d DataKey) Open(sealed, ad []byte) ([]byte, error) {
	if len(sealed) == 0 {
		return nil, nil
	}
	id := d.id()
	if len(sealed) < headerSize || sealed[0] != version || !bytes.Equal(sealed[1:headerSize], id[:]) {
		return nil, fmt.Errorf("version or key id: %w", sessionstore.ErrUnsealed)
	}
	plain, err := d.cipher().Open(nil, nil, sealed[headerSize:], ad)
	if err != nil {
		return nil, sessionstore.ErrUnsealed
	}
	return plain, nil
}

// OpenEvent reads a stored event of a session, body included. A body that cannot be opened is ErrUnsealed.
func (d DataKey) OpenEvent(sessionID string, e sessionstore.Stored) (sessionstore.Event, error) {
	head, err := sessionstore.ParseFrame(sessionstore.Frame(e.Seq, e.H, nil))
	if err != nil {
		return head, fmt.Errorf("read header of event %d of %s: %w", e.Seq, sessionID, err)
	}
	body, err := d.Open(e.C, MessageAD(sessionID, head.MessageID))
	if err != nil {
		return head, fmt.Errorf("open event %d of %s: %w", e.Seq, sessionID, err)
	}
	ev, err := sessionstore.ParseFrame(sessionstore.Frame(e.Seq, e.H, body))
	if err != nil {
		return ev, fmt.Errorf("read event %d of %s: %w", e.Seq, sessionID, err)
	}
	return ev, nil
}

func (d DataKey) id() (id [keyIDSize]byte) {
	sum := sha256.Sum256(d[:])
	copy(id[:], sum[:])
	return id
}

// cipher cannot fail: the key has the size of AES-256.
func (d DataKey) cipher() cipher.AEAD {
	block, err := aes.NewCipher(d[:])
	if err != nil {
		panic(err)
	}
	gcm, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		panic(err)
	}
	return gcm
}

// MessageAD is the associated data of a durable event's body.
func MessageAD(sessionID, messageID string) []byte {
	return []byte(strconv.Itoa(version) + "|" + sessionID + "|" + messageID)
}

// ChunkAD is the associated data of a chunk of a running answer.
func ChunkAD(sessionID, answerID string, attempt, chunk int) []byte {
	return []byte(sessionID + "|" + answerID + "|" + strconv.Itoa(attempt) + "|" + strconv.Itoa(chunk))
}

// NameAD is the associated data of a session's name.
func NameAD(sessionID string) []byte { return []byte(sessionID + "|name") }
