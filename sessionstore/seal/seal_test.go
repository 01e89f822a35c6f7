package seal_test

import (
	"bytes"
	"encoding/base64"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/real-rm/chatbox/sessionstore"
	"github.com/real-rm/chatbox/sessionstore/seal"
)

func newKeyring(t require.TestingT) (*seal.Keyring, string) {
	text, err := seal.NewKeyset()
	require.NoError(t, err)
	k, err := seal.NewKeyring(text)
	require.NoError(t, err)
	return k, text
}

func dataKey(t *rapid.T, name string) (d seal.DataKey) {
	copy(d[:], rapid.SliceOfN(rapid.Byte(), len(d), len(d)).Draw(t, name))
	return d
}

// Promise 44: content is encrypted at rest.
func TestSeal_opensToWhatItWasAndHidesIt(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		key := dataKey(t, "key")
		plain, ad := rapid.SliceOf(rapid.Byte()).Draw(t, "plain"), rapid.SliceOf(rapid.Byte()).Draw(t, "ad")
		sealed := key.Seal(plain, ad)
		got, err := key.Open(sealed, ad)
		require.NoError(t, err)
		require.True(t, bytes.Equal(plain, got))
		if len(plain) == 0 {
			require.Empty(t, sealed)
			return
		}
		if len(plain) > 8 {
			require.False(t, bytes.Contains(sealed, plain))
		}
		require.False(t, bytes.Equal(sealed, key.Seal(plain, ad)), "the same text never looks the same")
	})
}

// Promise 44: a stored value is worth nothing elsewhere, and changed nothing at all.
func TestOpen_refusesEverythingButWhatWasSealedThere(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		key := dataKey(t, "key")
		plain := rapid.SliceOfN(rapid.Byte(), 1, 200).Draw(t, "plain")
		ad := rapid.SliceOf(rapid.Byte()).Draw(t, "ad")
		sealed := key.Seal(plain, ad)

		refused := func(k seal.DataKey, value, ad []byte, what string) {
			got, err := k.Open(value, ad)
			require.ErrorIs(t, err, sessionstore.ErrUnsealed, what)
			require.Nil(t, got, what)
		}
		other := rapid.SliceOf(rapid.Byte()).Filter(func(b []byte) bool { return !bytes.Equal(b, ad) }).Draw(t, "other ad")
		refused(key, sealed, other, "other associated data")

		wrong := key
		wrong[rapid.IntRange(0, len(wrong)-1).Draw(t, "key byte")] ^= byte(rapid.IntRange(1, 255).Draw(t, "key flip"))
		refused(wrong, sealed, ad, "another key")

		altered := bytes.Clone(sealed)
		altered[rapid.IntRange(0, len(altered)-1).Draw(t, "byte")] ^= byte(rapid.IntRange(1, 255).Draw(t, "flip"))
		refused(key, altered, ad, "an altered byte")

		refused(key, sealed[:rapid.IntRange(1, len(sealed)-1).Draw(t, "length")], ad, "a truncated value")
		refused(key, append(bytes.Clone(sealed), 0), ad, "a longer value")
	})
}

func TestAD_isDifferentForEveryPlace(t *testing.T) {
	seen := map[string]string{}
	for name, ad := range map[string][]byte{
		"message":       seal.MessageAD("p01-s", "m"),
		"other message": seal.MessageAD("p01-s", "n"),
		"other session": seal.MessageAD("p01-t", "m"),
		"name":          seal.NameAD("p01-s"),
		"chunk":         seal.ChunkAD("p01-s", "m", 1, 12),
		"other chunk":   seal.ChunkAD("p01-s", "m", 11, 2),
	} {
		assert.Empty(t, seen[string(ad)], "%s has the associated data of another place", name)
		seen[string(ad)] = name
	}
}

func TestKeyring_unwrapsOnlyItsOwnKeysForTheirSession(t *testing.T) {
	k, text := newKeyring(t)
	key, wrapped, err := k.NewDataKey("p01-s")
	require.NoError(t, err)
	require.False(t, bytes.Contains(wrapped, key[:]))

	got, err := k.Unwrap("p01-s", wrapped)
	require.NoError(t, err)
	require.Equal(t, key, got)

	raw, err := base64.StdEncoding.DecodeString(text)
	require.NoError(t, err)
	fromJSON, err := seal.NewKeyring("\n" + string(raw) + "\n")
	require.NoError(t, err, "Tink's own form is read too")
	got, err = fromJSON.Unwrap("p01-s", wrapped)
	require.NoError(t, err)
	require.Equal(t, key, got)

	other, _ := newKeyring(t)
	altered := bytes.Clone(wrapped)
	altered[len(altered)-1] ^= 1
	for name, try := range map[string]func() (seal.DataKey, error){
		"another session": func() (seal.DataKey, error) { return k.Unwrap("p01-t", wrapped) },
		"another keyset":  func() (seal.DataKey, error) { return other.Unwrap("p01-s", wrapped) },
		"altered":         func() (seal.DataKey, error) { return k.Unwrap("p01-s", altered) },
		"truncated":       func() (seal.DataKey, error) { return k.Unwrap("p01-s", wrapped[:len(wrapped)-1]) },
		"erased":          func() (seal.DataKey, error) { return k.Unwrap("p01-s", nil) },
	} {
		got, err := try()
		assert.ErrorIs(t, err, sessionstore.ErrUnsealed, name)
		assert.Zero(t, got, name)
	}
}

func TestNewDataKey_neverGivesTheSameTwice(t *testing.T) {
	k, _ := newKeyring(t)
	a, _, err := k.NewDataKey("p01-s")
	require.NoError(t, err)
	b, _, err := k.NewDataKey("p01-s")
	require.NoError(t, err)
	require.NotEqual(t, a, b)
}

// A keyset that cannot be read is reported without any of it.
func TestNewKeyring_errorsHoldNoKeyMaterial(t *testing.T) {
	_, text := newKeyring(t)
	raw, err := base64.StdEncoding.DecodeString(text)
	require.NoError(t, err)
	for name, bad := range map[string]string{
		"empty":            "",
		"spaces":           "  \n",
		"cut base64":       text[:len(text)-5] + "!",
		"cut JSON":         string(raw[:len(raw)-5]),
		"not JSON":         base64.StdEncoding.EncodeToString([]byte("SECRETSECRET")),
		"a password":       "SECRETSECRET",
		"wrong key inside": strings.Replace(string(raw), "AesGcmKey", "SECRETKey", 1),
		"an empty keyset":  `{"primaryKeyId":1,"key":[]}`,
	} {
		_, err := seal.NewKeyring(bad)
		require.Error(t, err, name)
		assert.NotContains(t, err.Error(), "SECRET", name)
		for i := 0; i+12 <= len(raw); i += 6 {
			assert.NotContains(t, err.Error(), string(raw[i:i+12]), name)
		}
	}
}

func FuzzOpen(f *testing.F) {
	key := seal.DataKey{1, 2, 3}
	f.Add(key.Seal([]byte("hi"), []byte("ad"))[:20], []byte("ad"))
	f.Add([]byte{1}, []byte{})
	f.Add([]byte{}, []byte{})
	f.Fuzz(func(t *testing.T, value, ad []byte) {
		plain, err := key.Open(value, ad)
		if err == nil && len(value) > 0 {
			t.Fatalf("opened %x to %x", value, plain)
		}
	})
}
