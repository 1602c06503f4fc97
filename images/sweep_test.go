package images_test

import (
	"bufio"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containers/podman/v4/pkg/bindings/containers"

	"github.com/Morphux/quarry/images"
	"github.com/Morphux/quarry/internal/podman"
	"github.com/Morphux/quarry/internal/testbase"
)

// victim is a daemon that is to be killed: it makes workspaces, half of which
// it closes, until then. Without a guest it loads a base, from the file store.
func victim(state, store, guest string) error {
	ctx := context.Background()
	cfg := podman.Config{State: state, ImageStores: []string{store}}
	if guest == "" {
		cfg.ImageStores = nil
	}
	conn, err := podman.Start(ctx, cfg)
	if err != nil {
		return err
	}
	s, err := images.New(conn, images.Options{WorkDir: filepath.Join(state, "work"), Guest: guest,
		Channels: []images.Channel{{Name: "testing", Archs: []string{testbase.Arch}}}, Pool: images.PoolOptions{Max: 2, MinMemory: 1, MinDisk: 1, MaxStall: 100}})
	if err != nil {
		return err
	}
	if err := s.Sweep(ctx); err != nil {
		return fmt.Errorf("sweep: %w", err)
	}
	fmt.Println("swept", conn.Farm())
	if guest == "" {
		_, err := s.Load(ctx, testbase.Arch, store, func(p images.Progress) { fmt.Println(p.Step, p.Done) })
		return fmt.Errorf("load: %v", err)
	}
	go images.RunPool(ctx, s)
	for i := 0; ; i++ {
		// One is ready and another one under way when the next has been made.
		if err := s.Start(ctx, "testing"); err != nil {
			return err
		}
		w, err := s.Workspace(ctx, images.Spec{Name: fmt.Sprint(i), Arch: testbase.Arch, Channel: []string{"testing", "other"}[i/2%2]})
		if err != nil {
			return err
		}
		fmt.Println("made", w.ContainerID, w.Warm)
		if i%2 == 0 {
			if err := w.Close(ctx); err != nil {
				return err
			}
		}
	}
}

// kill -9 of the daemon at any moment leaves no process, no mount and no
// control group with anything in it, and the next start removes the rest.
func TestKill9(t *testing.T) {
	t.Parallel()
	state := t.TempDir()
	store, program := testbase.ImageStore(t), guest(t)
	farm := ""
	for round := range 5 {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), "QUARRY_TEST_VICTIM="+strings.Join([]string{state, store, program}, "\n"))
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		made := 0
		for made < 2+round && lines.Scan() {
			word, rest, _ := strings.Cut(lines.Text(), " ")
			switch word {
			case "swept":
				farm = rest
			case "made":
				made++
			}
		}
		time.Sleep(time.Duration(round) * 30 * time.Millisecond) // somewhere in the making of the next
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		cmd.Wait()
		if made == 0 || farm == "" {
			t.Fatalf("round %d: the victim made %d workspaces", round, made)
		}
		deadline := time.Now().Add(2 * time.Minute)
		for left := processesOf(t, farm); len(left) > 0; left = processesOf(t, farm) {
			if time.Now().After(deadline) {
				t.Fatalf("round %d: still running: %v", round, left)
			}
			time.Sleep(5 * time.Millisecond)
		}
		mounts, err := os.ReadFile("/proc/self/mountinfo")
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(mounts), state) {
			t.Fatalf("round %d: mounts are left", round)
		}
	}
	conn := startPodman(t, podman.Config{State: state, ImageStores: []string{store}})
	work := filepath.Join(state, "work")
	f := farmOf(conn, newStore(t, conn, images.Options{WorkDir: work}), work)
	if left, err := os.ReadDir(work); err != nil || len(left) == 0 {
		t.Errorf("the victim left no folder, so this test shows nothing: %v", err)
	}
	if err := f.store.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	if conn.Farm() != farm {
		t.Errorf("farm %q was %q", conn.Farm(), farm)
	}
	f.clean(t)
	layers, err := os.ReadDir(filepath.Join(state, "podman/root/overlay"))
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range layers {
		if len(l.Name()) == 64 {
			t.Errorf("layer %s is left", l.Name())
		}
	}
	w := f.workspace(t, images.Limits{})
	if got := sh(t, w, "echo works"); got != "works" {
		t.Errorf("%q", got)
	}
}

// Half a base is no base, and takes no room after the next start.
func TestKill9InLoad(t *testing.T) {
	t.Parallel()
	state := t.TempDir()
	big := make([]byte, 120<<20)
	rand.Read(big)
	base := file(t, "base.tar", small(t, testbase.Arch, entry{name: "./big", data: string(big)}))
	for _, step := range []string{"reading", "importing", "checking"} {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), "QUARRY_TEST_VICTIM="+strings.Join([]string{state, base, ""}, "\n"))
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		reached := false
		for lines := bufio.NewScanner(out); lines.Scan(); {
			if word, _, _ := strings.Cut(lines.Text(), " "); word == step {
				reached = true
				break
			}
		}
		time.Sleep(50 * time.Millisecond)
		cmd.Process.Kill()
		cmd.Wait()
		if !reached {
			t.Fatalf("%s was never reached", step)
		}
	}
	conn := startPodman(t, podman.Config{State: state})
	s := newStore(t, conn, images.Options{WorkDir: filepath.Join(state, "work")})
	if err := s.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	bases, err := s.Bases(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	most := int64(1 << 20)
	if len(bases) > 0 {
		most += 130 << 20 // the last one was quicker than its killer
	}
	var size int64
	filepath.Walk(conn.Dir(), func(path string, info os.FileInfo, err error) error {
		if err == nil && info.Mode().IsRegular() {
			size += info.Size()
		}
		return nil
	})
	if size > most {
		t.Errorf("%d bytes are left, with the bases %v", size, bases)
	}
}

func farmOf(conn *podman.Conn, s *images.Store, work string) farm { return farm{conn, s, work} }

// processesOf finds what runs in a farm's control groups.
func processesOf(t testing.TB, farm string) (pids []string) {
	t.Helper()
	for _, dir := range cgroupsOf(t, farm) {
		filepath.Walk(dir, func(path string, info os.FileInfo, err error) error {
			if err == nil && info.Name() == "cgroup.procs" {
				data, _ := os.ReadFile(path)
				pids = append(pids, strings.Fields(string(data))...)
			}
			return nil
		})
	}
	return pids
}

// A store sweeps what is its own and leaves what is another's, on one podman.
func TestSweepOnSharedPodman(t *testing.T) {
	t.Parallel()
	owner := testbase.Podman(t)
	uri := "unix://" + filepath.Join(owner.Dir(), "podman.sock")
	var farms []farm
	for range 2 {
		conn := startPodman(t, podman.Config{URI: uri})
		work := filepath.Join(t.TempDir(), "work")
		farms = append(farms, farmOf(conn, newStore(t, conn, images.Options{WorkDir: work}), work))
	}
	mine, other := farms[0].workspace(t, images.Limits{}), farms[1].workspace(t, images.Limits{})
	// What an earlier daemon of the first would have left.
	again := newStore(t, farms[0].conn, images.Options{WorkDir: farms[0].work})
	if err := again.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := try(mine, request{Shell: "true"}); err == nil {
		t.Error("the leftover lives")
	}
	if got := sh(t, other, "echo lives"); got != "lives" {
		t.Errorf("%q", got)
	}
	call, err := owner.Context(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	list, err := containers.List(call, new(containers.ListOptions).WithAll(true))
	if err != nil || len(list) != 1 || list[0].ID != other.ContainerID {
		t.Errorf("%v, %v", list, err)
	}
	if d, err := mine.Died(t.Context()); err == nil && !d.Dead || err != nil && !errors.Is(err, podman.ErrGone) {
		t.Errorf("%+v, %v", d, err)
	}
	for _, w := range []*images.Workspace{mine, other} {
		if err := w.Close(t.Context()); err != nil {
			t.Error(err)
		}
	}
}

// A full disk is a clear error of the farm's, and leaves nothing on it.
func TestDiskFull(t *testing.T) {
	state := t.TempDir()
	if err := syscall.Mount("tmpfs", state, "tmpfs", 0, "size=24m"); err != nil {
		t.Fatalf("%v: run the tests as root, or inside podman unshare", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(state, 0); err != nil {
			t.Errorf("%s: %v", state, err)
		}
	})
	// The cleanups of the farm below run before the unmounting.
	conn := startPodman(t, podman.Config{State: state, ImageStores: []string{testbase.ImageStore(t)}})
	work := filepath.Join(state, "work")
	f := farmOf(conn, newStore(t, conn, images.Options{WorkDir: work}), work)
	free := func() int64 {
		var st syscall.Statfs_t
		if err := syscall.Statfs(state, &st); err != nil {
			t.Fatal(err)
		}
		return int64(st.Bfree) * st.Bsize
	}
	before := free()

	t.Run("load", func(t *testing.T) {
		_, err := f.store.Load(t.Context(), "i686", testbase.Tarball(t), nil)
		if err == nil || !strings.Contains(err.Error(), "no space left") {
			t.Fatalf("%v", err)
		}
		if now := free(); now < before-4<<20 {
			t.Errorf("%d bytes are still taken", before-now)
		}
	})
	t.Run("workspace", func(t *testing.T) {
		fill := filepath.Join(state, "fill")
		out, err := os.Create(fill)
		if err != nil {
			t.Fatal(err)
		}
		for buf := make([]byte, 4096); ; {
			if _, err := out.Write(buf); err != nil {
				break
			}
		}
		out.Close()
		w, err := f.store.Workspace(t.Context(), images.Spec{Name: "1", Arch: testbase.Arch})
		if err == nil {
			w.Close(t.Context())
			t.Fatal("made on a full disk")
		}
		if !strings.Contains(err.Error(), "no space left") {
			t.Errorf("%v", err)
		}
		if err := os.Remove(fill); err != nil {
			t.Fatal(err)
		}
		w = f.workspace(t, images.Limits{})
		if got := sh(t, w, "echo recovered"); got != "recovered" {
			t.Errorf("%q", got)
		}
		w.Close(t.Context())
		f.clean(t)
	})
}
