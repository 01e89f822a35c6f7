package fault_test

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/real-rm/chatbox/internal/rig/fault"
)

// clockProgram prints the time in Unix seconds, and how long it has run, whenever it is told to.
const clockProgram = `package main

import (
	"bufio"
	"fmt"
	"os"
	"time"
)

func main() {
	began := time.Now()
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		fmt.Println(time.Now().Unix(), int64(time.Since(began)/time.Second))
	}
}
`

func TestClock_movesTheWallClockOfOneProcessAndNotItsTimers(t *testing.T) {
	dir := t.TempDir()
	overlay, err := fault.ClockOverlay(dir)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "main.go"), []byte(clockProgram), 0o600))
	bin := filepath.Join(dir, "program")
	out, err := exec.CommandContext(t.Context(), "go", "build", overlay, "-o", bin, filepath.Join(dir, "main.go")).CombinedOutput()
	require.NoError(t, err, string(out))
	clock, err := fault.NewClock(dir, "one")
	require.NoError(t, err)
	cmd := exec.CommandContext(t.Context(), bin)
	cmd.Env = append(os.Environ(), clock.Env())
	in, err := cmd.StdinPipe()
	require.NoError(t, err)
	answers, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	r := bufio.NewReader(answers)
	for _, offset := range []time.Duration{0, 10 * time.Minute, -10 * time.Minute, 0} {
		require.NoError(t, clock.Set(offset))
		_, err := fmt.Fprintln(in)
		require.NoError(t, err)
		line, err := r.ReadString('\n')
		require.NoError(t, err)
		wall, ran, _ := strings.Cut(strings.TrimSpace(line), " ")
		unix, err := strconv.ParseInt(wall, 10, 64)
		require.NoError(t, err)
		assert.InDelta(t, time.Now().Add(offset).Unix(), unix, 30)
		since, err := strconv.Atoi(ran)
		require.NoError(t, err)
		assert.Less(t, since, 60, "its monotonic clock has moved, too")
	}
	require.NoError(t, in.Close())
	require.NoError(t, cmd.Wait())
}
