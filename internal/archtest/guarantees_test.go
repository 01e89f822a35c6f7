package archtest

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// What docs/guarantees.md says is shown by a test is shown by one that exists, and nothing that must be spoken of is
// left out.
func TestGuarantees_nameTestsThatExist(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(root(t), "docs", "guarantees.md"))
	require.NoError(t, err)
	there := map[string]bool{}
	function := regexp.MustCompile(`(?m)^func ((?:Test|Fuzz)\w+)\(`)
	require.NoError(t, filepath.WalkDir(root(t), func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && (d.Name() == "node_modules" || d.Name() == ".git"):
			return filepath.SkipDir
		case !strings.HasSuffix(path, "_test.go"):
			return nil
		}
		source, err := os.ReadFile(path)
		for _, m := range function.FindAllSubmatch(source, -1) {
			there[string(m[1])] = true
		}
		return err
	}))
	named := regexp.MustCompile("`((?:Test|Fuzz)\\w+)`").FindAllSubmatch(text, -1)
	require.Greater(t, len(named), 80)
	for _, m := range named {
		assert.True(t, there[string(m[1])], "docs/guarantees.md names %s, which does not exist", m[1])
	}
	for _, row := range strings.Fields("B1 B2 B3 B4 B5 B6 B7 B8 B9 I1 I2 I3 I4 I5 I6 I7 F1 F2 F3 F4 F5 F6 F7 F8 F9 F10 F11 F12 F13 F14 F15 F16 F17 F18 F19 F20 F21 F26 F27 F28 F29 F30 F32" +
		" 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18") {
		assert.Contains(t, string(text), "\n| "+row+" |", "docs/guarantees.md does not speak of it")
	}
}
