// Guest is a first process for tests of workspaces: it connects, then answers
// requests, one JSON object a line, until the other side hangs up. Each is a
// command line for /bin/sh, or an action that needs no shell.
package main

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"syscall"
	"time"
)

type request struct {
	Shell  string
	Action string
	N      int
}

type answer struct {
	Output string
	Status int
	Error  string
}

func main() {
	if len(os.Args) != 3 || os.Args[1] != "guest" {
		fmt.Fprintln(os.Stderr, "usage: guest guest SOCKET")
		os.Exit(2)
	}
	conn, err := net.Dial("unix", os.Args[2])
	if err != nil {
		os.Exit(9)
	}
	in, out := json.NewDecoder(conn), json.NewEncoder(conn)
	for {
		var r request
		if err := in.Decode(&r); err != nil {
			os.Exit(0)
		}
		out.Encode(do(r))
	}
}

func do(r request) (a answer) {
	switch r.Action {
	case "":
		cmd := exec.Command("/bin/sh", "-c", r.Shell)
		cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
		b, err := cmd.CombinedOutput()
		a.Output = string(b)
		if err != nil {
			a.Error, a.Status = err.Error(), cmd.ProcessState.ExitCode()
		}
	case "exit":
		os.Exit(r.N)
	case "eat": // N MiB of memory in this process
		var keep [][]byte
		for range r.N {
			b := make([]byte, 1<<20)
			for i := range b {
				b[i] = byte(i)
			}
			keep = append(keep, b)
		}
		a.Output = fmt.Sprint(len(keep))
	case "nest": // N folders, each in the last
		if err := os.MkdirAll("/quarry/nest", 0o755); err != nil {
			a.Error = err.Error()
			return a
		}
		for _, top := range []string{"/quarry/nest", "/var/tmp"} {
			if err := os.Chdir(top); err != nil {
				a.Error = err.Error()
				return a
			}
			for range r.N {
				if err := syscall.Mkdir("d", 0o000); err != nil {
					a.Error = err.Error()
					return a
				}
				if err := syscall.Chdir("d"); err != nil {
					a.Error = err.Error()
					return a
				}
			}
		}
		os.Chdir("/")
	case "env":
		a.Output = fmt.Sprintf("%q", os.Environ())
	case "read": // the file Shell: its mode and content
		st, err := os.Lstat(r.Shell)
		if err == nil {
			var data []byte
			data, err = os.ReadFile(r.Shell)
			a.Output = fmt.Sprintf("%v %s", st.Mode(), data)
		}
		if err != nil {
			a.Error = err.Error()
		}
	case "sleep":
		time.Sleep(time.Hour)
	}
	return a
}
