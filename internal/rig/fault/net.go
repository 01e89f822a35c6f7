package fault

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
)

// Net loses packets in the network namespace of this process, which has nothing but a loopback interface: see Isolated.
// What is lost is lost in the kernel, so that TCP notices as it would on a bad line. Methods may not be called
// concurrently.
type Net struct{ table string }

// Isolated returns the command that runs a program in a network namespace of its own, in which only loopback works:
// there is no route to anywhere else. The program runs in this process's directory. It needs unshare, ip and nft, and to be root or to be allowed user namespaces.
func Isolated(ctx context.Context, program string, args ...string) (path string, all []string, err error) {
	for _, tool := range []string{"unshare", "ip", "nft"} {
		if _, lerr := exec.LookPath(tool); lerr != nil {
			err = errors.Join(err, lerr)
		}
	}
	if err != nil {
		return "", nil, fmt.Errorf("network namespace: %w", err)
	}
	flags := "-n"
	if os.Getuid() != 0 {
		flags = "-rn"
	}
	if out, err := exec.CommandContext(ctx, "unshare", flags, "ip", "link", "set", "lo", "up").CombinedOutput(); err != nil {
		return "", nil, fmt.Errorf("network namespace: %w: %s", err, out)
	}
	here, err := os.Getwd()
	if err != nil {
		return "", nil, fmt.Errorf("network namespace: %w", err)
	}
	return "unshare", append([]string{flags, "--", "sh", "-c", `ip link set lo up && cd "$0" && exec "$@"`, here, program}, args...), nil
}

// NewNet refuses to work where there is another interface than loopback.
func NewNet(ctx context.Context) (*Net, error) {
	all, err := net.Interfaces()
	if err != nil {
		return nil, fmt.Errorf("look at interfaces: %w", err)
	}
	for _, i := range all {
		if i.Flags&net.FlagLoopback == 0 && i.Flags&net.FlagUp != 0 {
			return nil, fmt.Errorf("this is not a namespace of its own: it has %s", i.Name)
		}
	}
	n := &Net{table: "faults"}
	return n, n.nft(ctx, "add table inet "+n.table)
}

// Lose begins to lose so many of a hundred packets of TCP from and to the ports, at random; all of them at 100. The
// name is how Dropped and Heal know it.
func (n *Net) Lose(ctx context.Context, name string, percent int, ports ...int) error {
	name = chain(name)
	lines := []string{
		fmt.Sprintf("add counter inet %s %s", n.table, name),
		fmt.Sprintf("add chain inet %s %s { type filter hook input priority 0; }", n.table, name),
	}
	some := fmt.Sprintf("numgen random mod 100 < %d", percent)
	if percent >= 100 {
		some = ""
	}
	for _, port := range ports {
		for _, side := range []string{"sport", "dport"} {
			lines = append(lines, fmt.Sprintf("add rule inet %s %s tcp %s %d %s counter name %s drop",
				n.table, name, side, port, some, name))
		}
	}
	return n.nft(ctx, lines...)
}

// Dropped is how many packets a fault has lost.
func (n *Net) Dropped(ctx context.Context, name string) (int, error) {
	out, err := exec.CommandContext(ctx, "nft", "-j", "list", "counter", "inet", n.table, chain(name)).Output()
	if err != nil {
		return 0, fmt.Errorf("read counter %s: %w", name, err)
	}
	var list struct {
		Nftables []struct {
			Counter *struct{ Packets int } `json:"counter"`
		} `json:"nftables"`
	}
	if err := json.Unmarshal(out, &list); err != nil {
		return 0, fmt.Errorf("read counter %s: %w", name, err)
	}
	for _, item := range list.Nftables {
		if item.Counter != nil {
			return item.Counter.Packets, nil
		}
	}
	return 0, errors.New("read counter " + name + ": there is none")
}

// Heal ends a fault. Connections go on where TCP has not given them up.
func (n *Net) Heal(ctx context.Context, name string) error {
	return n.nft(ctx, fmt.Sprintf("flush chain inet %s %s", n.table, chain(name)))
}

// chain makes a name that is no keyword of nft.
func chain(name string) string { return "fault_" + name }

func (n *Net) nft(ctx context.Context, lines ...string) error {
	cmd := exec.CommandContext(ctx, "nft", "-f", "-")
	cmd.Stdin = bytes.NewBufferString(strings.Join(lines, "\n") + "\n")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("nft %q: %w: %s", lines[0], err, out)
	}
	return nil
}

// Port is the port of host:port.
func Port(addr string) int {
	_, text, _ := net.SplitHostPort(addr)
	port, _ := strconv.Atoi(text)
	return port
}
