package pages

import (
	"bytes"
	"context"
	"errors"
	"html/template"
	"io"
	"strconv"
)

// Bounds of what a page shows of a log.
const (
	windowLines = 500
	keptLine    = maxLine + 4 // a few more, for a letter at the end
	maxMatches  = 200
	around      = 2 // lines shown before and after one that was found
)

// splitter cuts a log into lines, of which it keeps a bounded part.
type splitter struct {
	n    int64  // complete lines until now
	rest []byte // of a line that has not ended, keptLine at most
	over int64  // bytes of it that were left out
}

// write takes more of the log, and gives each line that it ends: its number from
// 1, what is kept of it (until the next call), and how many bytes are not.
func (s *splitter) write(p []byte, line func(n int64, text []byte, over int64)) {
	for len(p) > 0 {
		i := bytes.IndexByte(p, '\n')
		if i < 0 {
			s.keep(p)
			return
		}
		text := p[:i]
		p = p[i+1:]
		over := int64(0)
		if len(s.rest) > 0 || s.over > 0 {
			s.keep(text)
			text, over = s.rest, s.over
			s.rest, s.over = s.rest[:0], 0
		} else if len(text) > keptLine {
			over = int64(len(text) - keptLine)
			text = text[:keptLine]
		}
		s.n++
		line(s.n, text, over)
	}
}

func (s *splitter) keep(p []byte) {
	n := min(len(p), keptLine-len(s.rest))
	s.rest = append(s.rest, p[:n]...)
	s.over += int64(len(p) - n)
}

// end gives the last line, where it has no end.
func (s *splitter) end(line func(n int64, text []byte, over int64)) {
	if len(s.rest) > 0 || s.over > 0 {
		s.n++
		line(s.n, s.rest, s.over)
		s.rest, s.over = s.rest[:0], 0
	}
}

// eachLine gives every line of a log, and its size.
func eachLine(ctx context.Context, r io.Reader, line func(n int64, text []byte, over int64)) (size int64, err error) {
	var s splitter
	buf := make([]byte, 64<<10)
	for {
		if err := ctx.Err(); err != nil {
			return size, context.Cause(ctx)
		}
		n, err := r.Read(buf)
		size += int64(n)
		s.write(buf[:n], line)
		if errors.Is(err, io.EOF) {
			s.end(line)
			return size, nil
		}
		if err != nil {
			return size, err
		}
	}
}

// row is a line of a log as HTML.
func appendRow(dst []byte, n int64, text []byte, over int64) []byte {
	dst = append(dst, `<div class="l`...)
	if bytes.HasPrefix(text, []byte("==> ")) { // the farm's own
		dst = append(dst, " mark"...)
	}
	id := strconv.FormatInt(n, 10)
	dst = append(append(dst, `" id="L`...), id...)
	dst = append(append(append(append(dst, `"><a href="#L`...), id...), `">`...), id...)
	dst = append(dst, "</a>"...)
	dst = appendLine(dst, text, over)
	return append(dst, "</div>"...)
}

// excerpt is some lines of a log.
type excerpt struct {
	HTML        template.HTML
	First, Last int64 // lines that it has; 0 when none
	Lines       int64 // of the whole log
	Size        int64 // bytes
}

// Before and After are where more of the log begins; 0 when there is none.
func (e *excerpt) Before() int64 {
	if e.First <= 1 {
		return 0
	}
	return max(1, e.First-windowLines)
}

// After is the first line behind it.
func (e *excerpt) After() int64 {
	if e.Last >= e.Lines || e.Last == 0 {
		return 0
	}
	return e.Last + 1
}

// readFrom reads the lines from a given one on.
func readFrom(ctx context.Context, r io.Reader, from int64) (*excerpt, error) {
	e := &excerpt{}
	var b []byte
	size, err := eachLine(ctx, r, func(n int64, text []byte, over int64) {
		e.Lines = n
		if n >= from && n < from+windowLines {
			if e.First == 0 {
				e.First = n
			}
			e.Last = n
			b = appendRow(b, n, text, over)
		}
	})
	//nolint:gosec // appendRow escapes
	e.HTML, e.Size = template.HTML(b), size
	return e, err
}

// readTail reads the last lines.
func readTail(ctx context.Context, r io.Reader) (*excerpt, error) {
	type kept struct {
		text []byte
		over int64
	}
	e := &excerpt{}
	ring := make([]kept, windowLines)
	size, err := eachLine(ctx, r, func(n int64, text []byte, over int64) {
		k := &ring[n%windowLines]
		k.text, k.over = append(k.text[:0], text...), over
		e.Lines = n
	})
	if e.Size = size; err != nil || e.Lines == 0 {
		return e, err
	}
	e.First, e.Last = max(1, e.Lines-windowLines+1), e.Lines
	var b []byte
	for n := e.First; n <= e.Last; n++ {
		k := &ring[n%windowLines]
		b = appendRow(b, n, k.text, k.over)
	}
	e.HTML = template.HTML(b) //nolint:gosec // appendRow escapes
	return e, nil
}

// found is what a search in a log gives.
type found struct {
	Query  string
	HTML   template.HTML // lines that have it, and those around them
	Total  int           // lines that have it
	Shown  int           // of them
	Lines  int64
	Groups int
}

// search finds the lines that have a text, in letters of either case. Colours do
// not matter.
func search(ctx context.Context, r io.Reader, number int64, query string) (*found, error) {
	f := &found{Query: query}
	want := appendLower(nil, []byte(query))
	type kept struct {
		n    int64
		text []byte
		over int64
	}
	var before [around]kept
	var b, plain, low []byte
	var last int64 // line that was shown last
	after := 0     // lines still to show behind one that was found
	show := func(n int64, text []byte, over int64, hit bool) {
		if n <= last {
			return
		}
		if n != last+1 || last == 0 {
			if f.Groups > 0 {
				b = append(b, "</div>"...)
			}
			b = append(b, `<div class="hits">`...)
			f.Groups++
		}
		last = n
		id := strconv.FormatInt(n, 10)
		class := "l"
		if hit {
			class = "l hit"
		}
		b = append(append(append(b, `<div class="`...), class...), `"><a href="`+buildURL(number)+`?line=`...)
		b = append(append(append(append(append(b, id...), "#L"...), id...), `">`...), id...)
		b = append(b, "</a>"...)
		b = appendLine(b, text, over)
		b = append(b, "</div>"...)
	}
	_, err := eachLine(ctx, r, func(n int64, text []byte, over int64) {
		f.Lines = n
		plain = appendBare(plain[:0], text)
		low = appendLower(low[:0], plain)
		switch hit := bytes.Contains(low, want); {
		case hit:
			if f.Total++; f.Shown < maxMatches {
				f.Shown++
				for i := max(1, n-around); i < n; i++ {
					k := &before[i%around]
					show(k.n, k.text, k.over, false)
				}
				show(n, text, over, true)
				after = around
			}
		case after > 0:
			after--
			show(n, text, over, false)
		}
		k := &before[n%around]
		k.n, k.text, k.over = n, append(k.text[:0], text...), over
	})
	if f.Groups > 0 {
		b = append(b, "</div>"...)
	}
	f.HTML = template.HTML(b) //nolint:gosec // appendLine escapes
	return f, err
}

// appendLower makes the capitals of ASCII small: that is what compilers write.
func appendLower(dst, s []byte) []byte {
	for _, c := range s {
		if c >= 'A' && c <= 'Z' {
			c += 'a' - 'A'
		}
		dst = append(dst, c)
	}
	return dst
}
