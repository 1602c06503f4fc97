package usage

import (
	"os"
	"runtime"
	"strconv"
	"strings"

	"github.com/Morphux/quarry/internal/cgroup"
)

// Machine is how the whole machine stands.
type Machine struct {
	CPUs      int          `json:"cpus"`
	Memory    cgroup.Count `json:"memory,omitzero"`           // bytes
	Available cgroup.Count `json:"memory_available,omitzero"` // bytes that programs could still get, file cache included
	Load      []float64    `json:"load,omitempty"`            // processes that run or wait, over 1, 5 and 15 minutes
}

// ThisMachine looks at the machine.
func ThisMachine() Machine {
	m := Machine{CPUs: runtime.NumCPU()}
	if text, err := os.ReadFile("/proc/meminfo"); err == nil { // proc_meminfo(5)
		for line := range strings.Lines(string(text)) {
			f := strings.Fields(line)
			if len(f) < 2 {
				continue
			}
			n, err := strconv.ParseInt(f[1], 10, 64)
			switch {
			case err != nil:
			case f[0] == "MemTotal:":
				m.Memory = cgroup.Of(n << 10)
			case f[0] == "MemAvailable:":
				m.Available = cgroup.Of(n << 10)
			}
		}
	}
	if text, err := os.ReadFile("/proc/loadavg"); err == nil { // proc_loadavg(5)
		for _, word := range strings.Fields(string(text))[:3] {
			n, err := strconv.ParseFloat(word, 64)
			if err != nil {
				break
			}
			m.Load = append(m.Load, n)
		}
	}
	return m
}
