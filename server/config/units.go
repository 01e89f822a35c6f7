package config

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// Size is a number of bytes.
type Size int64

// sizeUnits are powers of 1024 in either spelling: so no file that anybody calls 100 MB is above "100MB".
var sizeUnits = []struct {
	name   string
	factor int64
}{ // the first that divides is used for printing
	{"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10},
	{"GB", 1 << 30}, {"MB", 1 << 20}, {"KB", 1 << 10},
	{"G", 1 << 30}, {"M", 1 << 20}, {"K", 1 << 10}, {"B", 1},
}

// String writes the size so that ParseSize reads the same value back.
func (s Size) String() string {
	for _, u := range sizeUnits[:3] {
		if s != 0 && int64(s)%u.factor == 0 {
			return strconv.FormatInt(int64(s)/u.factor, 10) + u.name
		}
	}
	return strconv.FormatInt(int64(s), 10)
}

// ParseSize reads a size such as 65536, "64KiB", "100MB" or "1.5 GB". Units are powers of 1024, case does not
// matter, a bare number is bytes. Negative sizes, and those that do not fit, are errors.
func ParseSize(text string) (Size, error) {
	t := strings.TrimSpace(text)
	factor := int64(1)
	for _, u := range sizeUnits {
		if len(t) > len(u.name) && strings.EqualFold(t[len(t)-len(u.name):], u.name) {
			t, factor = strings.TrimSpace(t[:len(t)-len(u.name)]), u.factor
			break
		}
	}
	if !plainNumber(t) {
		return 0, fmt.Errorf("%q is not a size such as \"100MB\" or \"64KiB\"", clip(text))
	}
	if n, err := strconv.ParseInt(t, 10, 64); err == nil {
		if n > math.MaxInt64/factor {
			return 0, fmt.Errorf("size %q is too large", clip(text))
		}
		return Size(n * factor), nil
	}
	f, err := strconv.ParseFloat(t, 64)
	if err != nil || f*float64(factor) >= math.MaxInt64 {
		return 0, fmt.Errorf("size %q is too large", clip(text))
	}
	return Size(math.Round(f * float64(factor))), nil
}

// plainNumber says whether t is digits with at most one point inside.
func plainNumber(t string) bool {
	whole, frac, point := strings.Cut(t, ".")
	digits := func(s string) bool { return s != "" && strings.Trim(s, "0123456789") == "" }
	return digits(whole) && (!point || digits(frac))
}

// ParseDuration reads a duration such as "15m" or "1h30m". A bare number is seconds where inSeconds allows it;
// elsewhere only 0 needs no unit. Negative durations are errors.
func ParseDuration(text string, inSeconds bool) (time.Duration, error) {
	t := strings.TrimSpace(text)
	if plainNumber(t) {
		f, err := strconv.ParseFloat(t, 64)
		switch {
		case err != nil || f > float64(math.MaxInt64)/float64(time.Second)/2:
			return 0, fmt.Errorf("duration %q is too long", clip(text))
		case f == 0 || inSeconds:
			return time.Duration(math.Round(f * float64(time.Second))), nil
		}
		return 0, fmt.Errorf("%q needs a unit, as in \"%ss\"", clip(text), clip(t))
	}
	d, err := time.ParseDuration(t)
	if err != nil {
		return 0, fmt.Errorf("%q is not a duration such as \"15m\" or \"1h30m\"", clip(text))
	}
	if d < 0 {
		return 0, fmt.Errorf("duration %q is negative", clip(text))
	}
	return d, nil
}

// clip keeps a value that is shown in an error short.
func clip(s string) string {
	if len(s) > 40 {
		return strings.ToValidUTF8(s[:40], "") + "…"
	}
	return s
}
