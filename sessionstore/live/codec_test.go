package live

import (
	"bytes"
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"
)

// encode is what record does in prelude.lua.
func encode(epoch string, seq int64, h, c []byte) []byte {
	b := []byte(epoch + " " + strconv.FormatInt(seq, 10) + " " + strconv.Itoa(len(h)) + " ")
	return append(append(b, h...), c...)
}

func TestParseRecord_returnsWhatWasPublished(t *testing.T) {
	h, c := []byte(`"type":"user_message"`), []byte("\x01 \x00\xff 7 ")
	epoch, seq, gotH, gotC, err := parseRecord(encode("12-abc", 1<<53, h, c))
	require.NoError(t, err)
	require.Equal(t, "12-abc", epoch)
	require.Equal(t, int64(1<<53), seq)
	require.Equal(t, h, gotH)
	require.Equal(t, c, gotC)

	_, _, gotH, gotC, err = parseRecord([]byte("1-a 0 0 "))
	require.NoError(t, err)
	require.Empty(t, gotH)
	require.Empty(t, gotC)
}

func TestParseRecord_refusesWhatIsNotARecord(t *testing.T) {
	for name, in := range map[string]string{
		"empty":              "",
		"no epoch":           " 1 1 x",
		"only an epoch":      "1-a",
		"no length":          "1-a 1",
		"no end of length":   "1-a 1 1",
		"length too long":    "1-a 1 3 xy",
		"negative length":    "1-a 1 -1 xy",
		"negative seq":       "1-a -1 1 x",
		"sign":               "1-a +1 1 x",
		"exponent":           "1-a 1e+15 1 x",
		"empty seq":          "1-a  1 x",
		"length over 64 bit": "1-a 1 99999999999999999999 x",
	} {
		t.Run(name, func(t *testing.T) {
			_, _, _, _, err := parseRecord([]byte(in))
			require.ErrorIs(t, err, errRecord)
		})
	}
}

func FuzzReadRecord(f *testing.F) {
	f.Add([]byte("1-a 7 3 abcdef"))
	f.Add([]byte("1-a 0 0 "))
	f.Add([]byte("1-a 7 99 abc"))
	f.Add([]byte("  "))
	f.Fuzz(func(t *testing.T, in []byte) {
		epoch, seq, h, c, err := parseRecord(in)
		if err != nil {
			return
		}
		if epoch == "" || seq < 0 {
			t.Fatalf("accepted %q: epoch %q seq %d", in, epoch, seq)
		}
		e2, s2, h2, c2, err := parseRecord(encode(epoch, seq, h, c))
		if err != nil || e2 != epoch || s2 != seq || !bytes.Equal(h2, h) || !bytes.Equal(c2, c) {
			t.Fatalf("%q does not survive: %v", in, err)
		}
	})
}
