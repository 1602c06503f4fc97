package guest

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"testing"
	"time"
)

func TestReader(t *testing.T) {
	long := bytes.Repeat([]byte("x"), MaxOutput)
	var stream []byte
	stream = AppendFrame(stream, KindHello, []byte(`{"version":1}`))
	stream = AppendFrame(stream, KindOutput, long)
	stream = AppendFrame(stream, KindOutput, nil)
	stream = AppendFrame(stream, KindReply, []byte(`{}`))
	r := NewReader(bytes.NewReader(stream))
	for i, want := range []struct {
		kind    Kind
		payload []byte
	}{{KindHello, []byte(`{"version":1}`)}, {KindOutput, long}, {KindOutput, nil}, {KindReply, []byte(`{}`)}} {
		kind, payload, err := r.Next()
		if err != nil || kind != want.kind || !bytes.Equal(payload, want.payload) {
			t.Fatalf("frame %d: kind %v, %d bytes, %v", i, kind, len(payload), err)
		}
	}
	if _, _, err := r.Next(); err != io.EOF {
		t.Errorf("at the end: %v, want io.EOF", err)
	}
	for _, tt := range []struct {
		in   string
		want error
	}{
		{"O\x00\x00", io.ErrUnexpectedEOF},
		{"O\x00\x00\x00\x04abc", io.ErrUnexpectedEOF},
		{"O\x00\x00\x00\x04", io.ErrUnexpectedEOF},
		{"O\x00\x01\x00\x01", ErrFrame},
		{"O\xff\xff\xff\xff", ErrFrame},
		{"R\x00\x01\x00\x01", ErrFrame},
		{"K\x00\x00\x00\x01", ErrFrame},
		{"x\x00\x00\x00\x00", ErrFrame},
		{"\x00\x00\x00\x00\x00", ErrFrame},
	} {
		if _, _, err := NewReader(strings.NewReader(tt.in)).Next(); !errors.Is(err, tt.want) {
			t.Errorf("%q: error %v, want %v", tt.in, err, tt.want)
		}
	}
}

func TestDecodeReply(t *testing.T) {
	for _, in := range []string{
		``, `nul`, `[]`, `{} {}`, `{"status":-1}`, `{"status":256}`, `{"status":1e30}`, `{"status":"1"}`,
		`{"signal":65}`, `{"wall":-1}`, `{"wall":9223372036854775807}`, `{"user":9223372036854775807}`,
		`{"rss":-1}`, `{"rss":9223372036854775807}`, `{"output":-5}`, `{"nleft":-1}`, `{"nleft":99999999}`,
		`{"killed":"joy"}`, `{"id":-1}`, `{"dir":"` + strings.Repeat("d", 5000) + `"}`,
		strings.Repeat(`[`, 60000),
	} {
		if r, err := DecodeReply([]byte(in)); !errors.Is(err, ErrFrame) {
			t.Errorf("%.60q: %+v, %v, want ErrFrame", in, r, err)
		}
	}
	r, err := DecodeReply([]byte(`{"problem":"a\u001b[2Jb\nc","left":["x\u0000","2","3","4","5","6","7","8","9","10","11","12","13","14","15","16","17"]}`))
	if err != nil {
		t.Fatal(err)
	}
	if r.Problem != `a\x1b[2Jb\nc` || len(r.Left) != maxLeft || r.Left[0] != `x\x00` {
		t.Errorf("%+v: escape codes or too much came through", r)
	}
	if r, err := DecodeReply([]byte(`{"error":"` + strings.Repeat("e", 9999) + `"}`)); err != nil || len(r.Error) > maxText+3 {
		t.Errorf("%d bytes of error, %v", len(r.Error), err)
	}
}

func TestDecodeHello(t *testing.T) {
	if _, err := DecodeHello([]byte(`{"version":99}`)); err == nil || !strings.Contains(err.Error(), "give both the same binary") {
		t.Errorf("error %v", err)
	}
}

// FuzzFrames reads whatever a guest might send, as a runner does.
func FuzzFrames(f *testing.F) {
	hello, _ := json.Marshal(Hello{Version: Version})
	reply, _ := json.Marshal(Reply{ID: 7, Status: 2, Wall: time.Second, Left: []string{"sleep"}, NLeft: 1, Problem: "p"})
	f.Add(AppendFrame(AppendFrame(AppendFrame(nil, KindHello, hello), KindOutput, []byte("out")), KindReply, reply))
	f.Add([]byte("O\xff\xff\xff\xff"))
	f.Add([]byte("R\x00\x00\x00\x02{}"))
	f.Fuzz(func(t *testing.T, in []byte) {
		r := NewReader(bytes.NewReader(in))
		total := 0
		for {
			kind, payload, err := r.Next()
			if err != nil {
				if err != io.EOF && err != io.ErrUnexpectedEOF && !errors.Is(err, ErrFrame) {
					t.Fatalf("error of an unknown kind: %v", err)
				}
				return
			}
			if total += headerSize + len(payload); total > len(in) || len(payload) > kind.max() {
				t.Fatalf("kind %v with %d bytes", kind, len(payload))
			}
			again := AppendFrame(nil, kind, payload)
			if k, p, err := NewReader(bytes.NewReader(again)).Next(); err != nil || k != kind || !bytes.Equal(p, payload) {
				t.Fatalf("kind %v does not come back: %v", kind, err)
			}
			switch kind {
			case KindHello:
				_, _ = DecodeHello(payload)
			case KindReply:
				checkReply(t, payload)
			}
		}
	})
}

// FuzzReply reads replies alone, so that the fuzzer need not find the header.
func FuzzReply(f *testing.F) {
	reply, _ := json.Marshal(Reply{ID: 7, Status: 2, Signal: 9, Command: 1, Killed: KilledLog, Wall: time.Second, User: 1, Sys: 2, RSS: 3, Output: 4, Left: []string{"sleep"}, NLeft: 1, Problem: "p", Error: "e", Dir: "/quarry/src"})
	f.Add(reply)
	f.Add([]byte(`{"left":["\u001b"]}`))
	f.Fuzz(func(t *testing.T, in []byte) { checkReply(t, in) })
}

func checkReply(t *testing.T, in []byte) {
	r, err := DecodeReply(in)
	if err != nil {
		if !errors.Is(err, ErrFrame) {
			t.Fatalf("error of an unknown kind: %v", err)
		}
		return
	}
	if r.Status < 0 || r.Status > 255 || r.Wall < 0 || r.User < 0 || r.Sys < 0 || r.RSS < 0 || r.Output < 0 || r.NLeft < 0 || r.Command < 0 || len(r.Left) > maxLeft {
		t.Fatalf("%+v came through", r)
	}
	for _, s := range append(r.Left, r.Error, r.Problem) {
		if i := strings.IndexFunc(s, func(c rune) bool { return c < ' ' || c >= 0x7f }); i >= 0 {
			t.Fatalf("%q came through", s)
		}
		if len(s) > 4*maxText+4 {
			t.Fatalf("%d bytes of text came through", len(s))
		}
	}
}
