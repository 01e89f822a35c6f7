package fault

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"go/build"
	"os"
	"path/filepath"
	"time"
)

// ClockEnv names the file of a Clock to a program that was built with ClockOverlay.
const ClockEnv = "CHATBOX_FAULT_CLOCK"

// Clock is how far the wall clock of a process is off. The process sees a change at once; its monotonic clock, and
// with it its timers, go on as they are, as when an operator or NTP sets the clock of a host.
type Clock struct{ path string }

// NewClock makes a clock that is right, with its file in dir.
func NewClock(dir, name string) (*Clock, error) {
	c := &Clock{path: filepath.Join(dir, name+".clock")}
	return c, c.Set(0)
}

// Env is what a process is started with to have this clock: NAME=value.
func (c *Clock) Env() string { return ClockEnv + "=" + c.path }

// Set moves the clock to that far from the right time, in whole seconds.
func (c *Clock) Set(offset time.Duration) error {
	f, err := os.OpenFile(c.path, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("set a clock: %w", err)
	}
	_, err = f.WriteAt(binary.NativeEndian.AppendUint64(nil, uint64(int64(offset/time.Second))), 0)
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("set a clock: %w", err)
	}
	return nil
}

// skewSource is added to package time. It cannot use os, which imports time.
const skewSource = `package time

import (
	"sync/atomic"
	"syscall"
	"unsafe"
)

var skewSeconds = openSkew()

func openSkew() *int64 {
	path, _ := syscall.Getenv("` + ClockEnv + `")
	if path == "" {
		return new(int64)
	}
	fd, err := syscall.Open(path, syscall.O_RDONLY, 0)
	if err != nil {
		panic("` + ClockEnv + `: " + err.Error())
	}
	b, err := syscall.Mmap(fd, 0, 8, syscall.PROT_READ, syscall.MAP_SHARED)
	if err != nil {
		panic("` + ClockEnv + `: " + err.Error())
	}
	return (*int64)(unsafe.Pointer(&b[0]))
}

func skew() int64 { return atomic.LoadInt64(skewSeconds) }
`

// ClockOverlay returns the argument that makes "go build" give a program a wall clock that a Clock moves: all that it
// and its libraries read by time.Now. The program's own sources are as they are, so no product can carry the switch.
// What it needs is written to dir and must be there during the build.
func ClockOverlay(dir string) (arg string, err error) {
	std := filepath.Join(build.Default.GOROOT, "src", "time")
	source, err := os.ReadFile(filepath.Join(std, "time.go"))
	if err != nil {
		return "", fmt.Errorf("clock overlay: %w", err)
	}
	const reads = "func Now() Time {\n\tsec, nsec, mono := runtimeNow()\n"
	if bytes.Count(source, []byte(reads)) != 1 {
		return "", errors.New("clock overlay: time.Now of this version of Go is not as it was")
	}
	source = bytes.Replace(source, []byte(reads), []byte(reads+"\tsec += skew()\n"), 1)
	overlay := struct{ Replace map[string]string }{map[string]string{
		filepath.Join(std, "time.go"): filepath.Join(dir, "time.go.txt"),
		filepath.Join(std, "skew.go"): filepath.Join(dir, "skew.go.txt"),
	}}
	list, err := json.Marshal(overlay)
	if err != nil {
		return "", fmt.Errorf("clock overlay: %w", err)
	}
	for name, data := range map[string][]byte{"time.go.txt": source, "skew.go.txt": []byte(skewSource), "overlay.json": list} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			return "", fmt.Errorf("clock overlay: %w", err)
		}
	}
	return "-overlay=" + filepath.Join(dir, "overlay.json"), nil
}
