package doctor

import (
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"os"

	"github.com/Morphux/quarry/images"
)

// runs tells how programs of an arch run here; emulated ones have been tried.
func runs(arch string) (string, error) {
	how, err := images.Emulation(arch)
	if err != nil || how != images.Emulated {
		return how, err
	}
	if err := images.TryArch(arch); err != nil {
		return "", &images.NoEmulationError{Arch: arch, Why: fmt.Sprintf("an emulator is registered, but does not run (%v)", err),
			Cure: "reinstall qemu-user-static, then quarry doctor --fix"}
	}
	return how, nil
}

// runsArch looks whether programs of an arch run here, and with Fix and consent
// sees to it when all it takes is to tell the kernel of an emulator that is
// installed.
func runsArch(arch string, o *Options) Finding {
	how, err := runs(arch)
	if err == nil {
		return ok("%s", describe(how))
	}
	var no *images.NoEmulationError
	if !errors.As(err, &no) {
		return failure(Fail, err, "see doc/operating.md")
	}
	why := "its programs do not run here: " + no.Why
	if !o.Fix {
		return bad(Fail, no.Cure, "%s", why)
	}
	r, perr := plan(arch)
	if perr != nil {
		return bad(Fail, perr.Error(), "%s", why)
	}
	if o.Consent == nil || !o.Consent(r.String()) {
		return bad(Fail, "quarry doctor --fix --yes would "+r.String(), "%s", why)
	}
	did, err := r.do()
	if err != nil {
		return bad(Fail, err.Error(), "%s", why)
	}
	if how, err = runs(arch); err != nil {
		return bad(Fail, no.Cure, "%s; it %s, and still: %v", why, did, err)
	}
	f := ok("%s, as of now: %s", describe(how), did)
	f.Fixed = true
	return f
}

func describe(how string) string {
	switch how {
	case images.Native:
		return "native"
	case images.Compat:
		return "compat: this processor runs it beside its own"
	}
	return "emulated, through binfmt_misc: ten to twenty times slower"
}

// static reports whether a program runs without anything else, as it must
// inside of somebody else's system.
func static(path string) bool {
	f, err := elf.Open(path)
	if err != nil {
		return false
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return false
		}
	}
	return true
}

func guest(ctx context.Context, o *Options) Finding {
	if o.Guest == "" {
		return bad(Fail, "reinstall Quarry", "no guest program is known")
	}
	st, err := os.Stat(o.Guest)
	if err != nil {
		return failure(Fail, err, "reinstall Quarry")
	}
	if st.Mode().Perm()&0o111 != 0o111 {
		return bad(Fail, "chmod a+rx "+o.Guest, "%s may not be run by everybody, and a build's root is nobody on this machine", o.Guest)
	}
	if !static(o.Guest) {
		return bad(Fail, "build it with CGO_ENABLED=0 (make build does)", "%s is not a static program, so it would need libraries of every base", o.Guest)
	}
	return ok("%s is static", o.Guest)
}
