package guest

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/Morphux/quarry/jobserver"
)

// Version is the version of the protocol between runner and guest. Both ends
// come out of one binary; the check catches a base that carries another.
const Version = 3

// Kind is the kind of a frame.
type Kind byte

// The kinds of frames. A frame is its kind (1 byte), the length of what
// follows (4 bytes, big-endian) and that many bytes.
const (
	KindHello   Kind = 'H' // guest to runner, once, first: Hello as JSON
	KindRequest Kind = 'Q' // runner to guest: Request as JSON
	KindCancel  Kind = 'K' // runner to guest: end the step that runs; empty
	KindOutput  Kind = 'O' // guest to runner: bytes that a step printed
	KindReply   Kind = 'R' // guest to runner: Reply as JSON
	KindForm    Kind = 'J' // guest to runner, as a step begins that has a jobserver: the form in which its commands are told

	// On a socket of a shell's own:
	KindInput Kind = 'I' // runner to guest: bytes of input; none: the end of it
	KindSize  Kind = 'W' // runner to guest: columns and lines of the terminal, two bytes each, big-endian
	KindError Kind = 'E' // guest to runner: bytes of standard error; KindOutput has the others
	KindExit  Kind = 'X' // guest to runner, last: Exit as JSON
)

// Limits on frames. An end that breaks them is not listened to any longer.
const (
	MaxOutput  = 64 << 10
	MaxReply   = 64 << 10
	MaxHello   = 4 << 10
	MaxRequest = 4 << 20
	MaxInput   = 32 << 10
	maxExit    = 256
	maxForm    = 32
	sizeBytes  = 4

	headerSize = 5
)

// max is how much a frame of the kind may carry; -1 for kinds that do not exist.
func (k Kind) max() int {
	switch k {
	case KindHello:
		return MaxHello
	case KindRequest:
		return MaxRequest
	case KindCancel:
		return 0
	case KindOutput, KindError:
		return MaxOutput
	case KindInput:
		return MaxInput
	case KindSize:
		return sizeBytes
	case KindExit:
		return maxExit
	case KindForm:
		return maxForm
	case KindReply:
		return MaxReply
	}
	return -1
}

func (k Kind) String() string { return fmt.Sprintf("%q", rune(k)) }

// Hello is the first thing a guest says.
type Hello struct {
	Version int `json:"version"`
}

// The operations a runner may ask for.
const (
	OpInstall = "install" // lay the artifact that comes with the request (SCM_RIGHTS) into / or Root
	OpPlace   = "place"   // find the working directory, unpacking a lone tarball
	OpRun     = "run"     // run a step
	OpShell   = "shell"   // run a command beside others; the socket that comes with the request is its own
)

// Request asks the guest for one operation. There is one at a time; each is
// answered by one Reply. That of a shell says that it has begun.
type Request struct {
	ID    uint32 `json:"id"`
	Op    string `json:"op"`
	Name  string `json:"name,omitempty"` // install: of the dependency, for messages
	Root  string `json:"root,omitempty"` // install: the folder to lay it into; blank: /
	Place *Place `json:"place,omitempty"`
	Run   *Run   `json:"run,omitempty"`
	Shell *Shell `json:"shell,omitempty"`
}

// Place says where a package's sources lie.
type Place struct {
	Root string    `json:"root"`          // e.g. /quarry/src
	Dir  string    `json:"dir,omitempty"` // the recipe's own choice, below Root; empty: found out
	Time time.Time `json:"time"`          // what all files that are unpacked get as their time
}

// Run is one step: commands that run one after another until one fails.
type Run struct {
	Commands []Command     `json:"commands"`
	Dir      string        `json:"dir"`
	Env      []string      `json:"env"`
	Wall     time.Duration `json:"wall"`             // the step may take this long; 0: any time
	Silence  time.Duration `json:"silence"`          // and may be silent this long; 0: any time
	Log      int64         `json:"log"`              // bytes it may print
	Compat   bool          `json:"compat,omitempty"` // run under personality(PER_LINUX32): uname says i686 on x86_64

	// Jobserver is what the commands share for what they do in parallel; nil: there is none.
	Jobserver *Jobserver `json:"jobserver,omitempty"`
}

// Shell is a command that a person runs once the steps are over.
type Shell struct {
	Try    [][]string `json:"try"` // commands, of which the first runs that is there
	Dir    string     `json:"dir"` // "/" where it is gone
	Env    []string   `json:"env"`
	TTY    bool       `json:"tty,omitempty"` // on a terminal of its own; else on pipes
	Cols   uint16     `json:"cols,omitempty"`
	Rows   uint16     `json:"rows,omitempty"`
	Script *Script    `json:"script,omitempty"` // to be there for it
	Compat bool       `json:"compat,omitempty"` // as in Run
}

// Script is a program for the workspace's shell.
type Script struct {
	Path string `json:"path"`
	Text string `json:"text"`
}

// Exit is how a shell ended.
type Exit struct {
	Status int `json:"status"` // 128+n when signal n ended it
}

// Command is one command of a step.
type Command struct {
	Args  []string `json:"args"`
	Shell bool     `json:"shell,omitempty"` // a file without its exec bit is run by /bin/sh
}

// Why a guest ended a step before its time.
const (
	KilledTime    = "time"
	KilledSilence = "silence"
	KilledLog     = "log"
	KilledCancel  = "cancel"
)

// Reply is what came of a request. Error is trouble that is not the package's
// doing; Problem is what is wrong with the package, or with what it asks for.
type Reply struct {
	ID      uint32 `json:"id"`
	Error   string `json:"error,omitempty"`
	Problem string `json:"problem,omitempty"`
	Dir     string `json:"dir,omitempty"` // place: the working directory

	// Of run.
	Status  int           `json:"status,omitempty"`  // exit status of the last command; 128+n when signal n ended it
	Signal  int           `json:"signal,omitempty"`  // the signal that ended it
	Command int           `json:"command,omitempty"` // index of the last command that ran
	Killed  string        `json:"killed,omitempty"`  // why the guest ended it
	Wall    time.Duration `json:"wall,omitempty"`
	User    time.Duration `json:"user,omitempty"` // CPU time of everything that the step started
	Sys     time.Duration `json:"sys,omitempty"`
	RSS     int64         `json:"rss,omitempty"`    // bytes, of the largest process
	Output  int64         `json:"output,omitempty"` // bytes printed, those over the limit not counted
	Left    []string      `json:"left,omitempty"`   // names of processes left behind and killed, a few of them
	NLeft   int           `json:"nleft,omitempty"`  // how many there were
}

// ErrFrame wraps every complaint about what the other end sent.
var ErrFrame = errors.New("bad frame")

// checkHeader takes apart a frame's header.
func checkHeader(h [headerSize]byte) (Kind, int, error) {
	kind := Kind(h[0])
	most := kind.max()
	if most < 0 {
		return 0, 0, fmt.Errorf("%w: unknown kind %v", ErrFrame, kind)
	}
	n := binary.BigEndian.Uint32(h[1:])
	if int64(n) > int64(most) {
		return 0, 0, fmt.Errorf("%w: kind %v with %d bytes, %d is the most", ErrFrame, kind, n, most)
	}
	return kind, int(n), nil
}

func putHeader(b []byte, kind Kind, n int) {
	b[0] = byte(kind)
	binary.BigEndian.PutUint32(b[1:], uint32(n))
}

// AppendFrame appends a frame to b. It panics when payload is longer than the
// kind allows, which only this program's own mistake can bring about.
func AppendFrame(b []byte, kind Kind, payload []byte) []byte {
	if len(payload) > kind.max() {
		panic("guest: frame too long")
	}
	var h [headerSize]byte
	putHeader(h[:], kind, len(payload))
	return append(append(b, h[:]...), payload...)
}

// Reader reads frames. It never keeps more than one in memory.
type Reader struct {
	r   io.Reader
	buf []byte
}

// NewReader reads frames from r, which should be buffered where reads are dear.
func NewReader(r io.Reader) *Reader { return &Reader{r: r} }

// Next reads a frame. The payload is good until the next call. At the end
// between two frames the error is io.EOF, within one io.ErrUnexpectedEOF; what
// is not a frame gives ErrFrame.
func (r *Reader) Next() (Kind, []byte, error) {
	var h [headerSize]byte
	if _, err := io.ReadFull(r.r, h[:]); err != nil {
		return 0, nil, err
	}
	kind, n, err := checkHeader(h)
	if err != nil {
		return 0, nil, err
	}
	if cap(r.buf) < n {
		r.buf = make([]byte, n)
	}
	if _, err := io.ReadFull(r.r, r.buf[:n]); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return 0, nil, err
	}
	return kind, r.buf[:n], nil
}

// decode reads one JSON value that fills data.
func decode(data []byte, into any) error {
	d := json.NewDecoder(bytes.NewReader(data))
	if err := d.Decode(into); err != nil {
		return fmt.Errorf("%w: %v", ErrFrame, err)
	}
	if _, err := d.Token(); err != io.EOF {
		return fmt.Errorf("%w: more than one JSON value", ErrFrame)
	}
	return nil
}

// DecodeHello reads what a guest says first.
func DecodeHello(data []byte) (Hello, error) {
	var h Hello
	if err := decode(data, &h); err != nil {
		return Hello{}, err
	}
	if h.Version != Version {
		return Hello{}, fmt.Errorf("the guest speaks version %d of the protocol, this runner version %d: give both the same binary", h.Version, Version)
	}
	return h, nil
}

// DecodeForm reads how the commands of a step are told of their jobserver: in one
// of the forms of package jobserver, or JobserverLost.
func DecodeForm(data []byte) (string, error) {
	switch form := string(data); form {
	case jobserver.FIFO, jobserver.Descriptor, jobserver.None, JobserverLost:
		return form, nil
	}
	return "", fmt.Errorf("%w: a jobserver in the form %.40q", ErrFrame, data)
}

// DecodeExit reads how a shell ended.
func DecodeExit(data []byte) (Exit, error) {
	var e Exit
	if err := decode(data, &e); err != nil {
		return Exit{}, err
	}
	if e.Status < 0 || e.Status > 255 {
		return Exit{}, fmt.Errorf("%w: status is %d", ErrFrame, e.Status)
	}
	return e, nil
}

// AppendSize appends a frame with the size of a terminal to b.
func AppendSize(b []byte, cols, rows uint16) []byte {
	var p [sizeBytes]byte
	binary.BigEndian.PutUint16(p[:], cols)
	binary.BigEndian.PutUint16(p[2:], rows)
	return AppendFrame(b, KindSize, p[:])
}

// Limits on what a reply may hold. The runner takes nothing on trust that
// comes out of a workspace.
const (
	maxText = 4 << 10
	maxLeft = 16
)

// DecodeReply reads a reply and bounds everything in it: numbers that cannot be
// are an error, text is cut to a length and what is not printable in it is
// quoted.
func DecodeReply(data []byte) (Reply, error) {
	var r Reply
	if err := decode(data, &r); err != nil {
		return Reply{}, err
	}
	const day = 24 * time.Hour
	for _, n := range []struct {
		what     string
		val, max int64
	}{
		{"status", int64(r.Status), 255},
		{"signal", int64(r.Signal), 64},
		{"command", int64(r.Command), 1 << 20},
		{"wall", int64(r.Wall), int64(366 * day)},
		{"user", int64(r.User), int64(100 * 366 * day)},
		{"sys", int64(r.Sys), int64(100 * 366 * day)},
		{"rss", r.RSS, 1 << 52},
		{"output", r.Output, 1 << 60},
		{"nleft", int64(r.NLeft), 1 << 22},
	} {
		if n.val < 0 || n.val > n.max {
			return Reply{}, fmt.Errorf("%w: %s is %d", ErrFrame, n.what, n.val)
		}
	}
	switch r.Killed {
	case "", KilledTime, KilledSilence, KilledLog, KilledCancel:
	default:
		return Reply{}, fmt.Errorf("%w: killed is %.40q", ErrFrame, r.Killed)
	}
	if len(r.Left) > maxLeft {
		r.Left = r.Left[:maxLeft]
	}
	for i, s := range r.Left {
		r.Left[i] = clean(s, 64)
	}
	r.Error, r.Problem = clean(r.Error, maxText), clean(r.Problem, maxText)
	if len(r.Dir) > maxText {
		return Reply{}, fmt.Errorf("%w: a directory of %d bytes", ErrFrame, len(r.Dir))
	}
	return r, nil
}

// clean cuts s to max bytes and quotes it when it holds anything that could
// disturb a terminal or a line.
func clean(s string, max int) string {
	if len(s) > max {
		s = s[:max] + "..."
	}
	for i := 0; i < len(s); i++ {
		if s[i] < ' ' || s[i] >= 0x7f {
			q := fmt.Sprintf("%+q", s)
			return q[1 : len(q)-1]
		}
	}
	return s
}
