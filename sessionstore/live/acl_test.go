package live

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// The Redis user that operators are given may run every command of the scripts: one that is missing would be refused on a
// system in production only.
func TestScripts_needNothingThatTheMinimalUserMayNot(t *testing.T) {
	acl, err := os.ReadFile("../../k8s/redis/users.acl")
	require.NoError(t, err)
	allowed := strings.Fields(string(acl))
	files, err := sources.ReadDir("lua")
	require.NoError(t, err)
	command := regexp.MustCompile(`call\('([A-Z]+)'`)
	found := 0
	for _, f := range files {
		text, err := sources.ReadFile("lua/" + f.Name())
		require.NoError(t, err)
		for _, m := range command.FindAllStringSubmatch(string(text), -1) {
			found++
			assert.Contains(t, allowed, "+"+strings.ToLower(m[1]), f.Name())
		}
	}
	assert.Greater(t, found, 100)
}
