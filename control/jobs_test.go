package control

import (
	"context"
	"encoding/json"
	"io"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/jobs"
)

// sharingFarm is a farm that runs one build, with a share of eight slots, until its
// test ends.
func sharingFarm(t *testing.T) (*Farm, *jobs.Share) {
	t.Helper()
	gov, err := jobs.New(jobs.Options{Total: 8, State: filepath.Join(t.TempDir(), "jobs.json")})
	if err != nil {
		t.Fatal(err)
	}
	begun := make(chan *jobs.Share)
	f := testFarm(t, func(ctx context.Context, b quarry.Build, _ io.Writer) (*quarry.Outcome, error) {
		s, err := gov.Begin(ctx, jobs.Build{Number: b.Number, Attempt: b.Attempt, Name: "zlib-1.3-p1", Key: b.Key, Max: 6})
		if err != nil {
			return nil, err
		}
		defer s.End()
		begun <- s
		<-ctx.Done()
		return nil, ctx.Err()
	})
	f.Jobs = gov
	return f, <-begun
}

func TestJobs(t *testing.T) {
	f, share := sharingFarm(t)
	share.Step(true)
	table := Verbs(f)
	say := func(who quarry.Identity, line string) (out string, code int) {
		t.Helper()
		out, errOut, code := call(t, table, who, Terminal{}, strings.Fields(line)...)
		return out + errOut, code
	}
	zlib := quarry.Identity{Packager: quarry.Packager{User: "zoe", Key: "SHA256:z"}, Role: quarry.RoleMaintainer, Packages: []string{"zlib"}}
	other := quarry.Identity{Packager: quarry.Packager{User: "otto", Key: "SHA256:o"}, Role: quarry.RoleMaintainer, Packages: []string{"git"}}
	for _, tt := range []struct {
		who  quarry.Identity
		line string
		code int
		want string
	}{
		{reader, "jobs", ExitOK, "8 slots for builds\n"},
		{reader, "jobs", ExitOK, "1      zlib     1.3-p1   x86_64"},
		{reader, "help jobs", ExitOK, "jobs set BUILD N|auto"},
		{reader, "jobs more", ExitUsage, "jobs takes no arguments"},
		{reader, "jobs --every 1ms", ExitUsage, "--every"},
		{reader, "jobs set 1 1", ExitForbidden, "only maintainers"},
		{other, "jobs set 1 1", ExitForbidden, "not among those of otto"},
		{zlib, "jobs set 1 8", ExitForbidden, "only an admin may give it as many or more"},
		{zlib, "jobs set 1 6", ExitForbidden, "has 6 jobs: give it fewer"},
		{zlib, "jobs set 1 2", ExitOK, "build 1 may run 2 jobs\n"},
		{reader, "jobs", ExitOK, "set to 2 by zoe"},
		{reader, "status 1", ExitOK, "of 2 in use; set to 2 by zoe"},
		{zlib, "jobs set 1 auto", ExitOK, "as many jobs as the farm gives it, now 6"},
		{admin, "jobs set 1 100", ExitOK, "build 1 may run 6 jobs: the machine's limit or its recipe"},
		{zlib, "jobs set 1 1", ExitForbidden, "only an admin may change that"},
		{zlib, "jobs set 1 auto", ExitForbidden, "only an admin may change that"},
		{admin, "jobs set 1 auto", ExitOK, "now 6"},
		{admin, "jobs set 2 1", ExitNotFound, "build 2"},
		{admin, "jobs set 1 0", ExitUsage, "no number of jobs"},
		{admin, "jobs set 1 -1", ExitUsage, ""},
		{admin, "jobs set 1 99999999999999999999", ExitUsage, "no number of jobs"},
		{zlib, "jobs limit 1", ExitForbidden, "only an admin"},
		{admin, "jobs limit 0", ExitUsage, "no number of jobs"},
		{admin, "jobs limit 3 --for -1h", ExitUsage, "--for"},
		{admin, "jobs limit off --for 1h", ExitUsage, "leave out --for"},
		{admin, "jobs limit 3 --for 9000h", ExitUsage, "--for"},
		{reader, "builders", ExitOK, "1 of 8 slots in use\n"},
		{admin, "jobs limit 3 --for 2h", ExitOK, "3 of 8 slots for builds, by hand: root, until "},
		{reader, "builders", ExitOK, "1 of 8 slots in use, 3 may be: by hand: root, until "},
		{reader, "jobs", ExitOK, "3 given"},
		{reader, "top", ExitOK, "3 of 8 slots for builds, by hand"},
		{reader, "status", ExitOK, "3 of 8 slots for builds, by hand"},
		{admin, "jobs limit all", ExitOK, "8 of 8 slots for builds, by hand: root\n"},
		{admin, "jobs limit off", ExitOK, "8 slots for builds\n"},
	} {
		if out, code := say(tt.who, tt.line); code != tt.code || !strings.Contains(out, tt.want) {
			t.Errorf("%s says %s: %d, %q; want %d, %q", tt.who.User, tt.line, code, out, tt.code, tt.want)
		}
	}
	out, code := say(reader, "jobs --json")
	var st JobsStatus
	if err := json.Unmarshal([]byte(out), &st); err != nil || code != ExitOK {
		t.Fatalf("%d, %v\n%s", code, err, out)
	}
	if len(st.Builds) != 1 || st.Builds[0].Package != "zlib" || st.Builds[0].Granted != 6 || st.Builds[0].Ceiling != 6 || st.Total != 8 || st.Limit.Slots != 8 {
		t.Errorf("%s", out)
	}
	if b := f.Builders()[0].Jobs; b == nil || *b != (BuilderJobs{Total: 8, Limit: 8, Why: "all slots", Granted: 6, Used: 1}) {
		t.Errorf("builders have %+v", b)
	}
}

// TestJobsWaiting: a build that waits for its first slot is shown as one, and has
// none of the numbers.
func TestJobsWaiting(t *testing.T) {
	f, _ := sharingFarm(t)
	gov := f.Jobs.(*jobs.Governor)
	if err := gov.Limit(1, time.Time{}, "root"); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		_, err := gov.Begin(ctx, jobs.Build{Name: "verify-1 git-2.0"})
		ended <- err
	}()
	for deadline := time.Now().Add(patience); len(gov.Status().Builds) < 2; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the second build never came")
		}
	}
	out, _, _ := call(t, Verbs(f), reader, Terminal{}, "jobs")
	if !strings.Contains(out, "-      verify-1 git-2.0") || !strings.Contains(out, "waits for a slot") {
		t.Errorf("%s", out)
	}
	stop()
	if err := <-ended; err == nil {
		t.Error("it got a slot that was not there")
	}
}

func TestNoJobs(t *testing.T) {
	f := &Farm{Queue: testFarm(t, func(ctx context.Context, b quarry.Build, _ io.Writer) (*quarry.Outcome, error) {
		return &quarry.Outcome{Build: b, Status: quarry.Succeeded}, nil
	}).Queue}
	for _, line := range []string{"jobs", "jobs set 1 1", "jobs limit 1"} {
		if _, errOut, code := call(t, Verbs(f), admin, Terminal{}, strings.Fields(line)...); code != ExitError || !strings.Contains(errOut, "shares no jobs out") {
			t.Errorf("%s: %d, %q", line, code, errOut)
		}
	}
	if _, ok := f.JobsNow(); ok {
		t.Error("somebody shares jobs out")
	}
}
