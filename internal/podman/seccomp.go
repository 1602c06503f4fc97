package podman

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
)

// seccompSources are where podman itself looks for its default profile.
var seccompSources = []string{"/etc/containers/seccomp.json", "/usr/share/containers/seccomp.json"}

// SeccompSources are the files of which the first that is there is the start of
// the profile for workspaces.
func SeccompSources() []string { return slices.Clone(seccompSources) }

// denied are system calls that podman's default profile leaves to containers
// for the sake of containers inside of them. Builds need none: namespaces of
// their own would give them all capabilities over those, and with them the
// parts of the kernel where most of its privilege bugs were; and keyrings
// belong to a user id, which several workspaces share.
var denied = []string{
	"unshare", "setns", "clone3",
	"mount", "umount", "umount2", "mount_setattr", "move_mount", "open_tree", "open_tree_attr",
	"fsopen", "fsconfig", "fsmount", "fspick", "pivot_root",
	"keyctl", "add_key", "request_key",
}

// namespaceFlags are the flags of clone(2) that make a namespace: NEWNS,
// NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID and NEWNET.
const namespaceFlags = 0x7e020000

// tightenSeccomp takes namespaces, mounts and keyrings out of a profile.
func tightenSeccomp(profile []byte) ([]byte, error) {
	var p map[string]any
	if err := json.Unmarshal(profile, &p); err != nil {
		return nil, err
	}
	rules, ok := p["syscalls"].([]any)
	if !ok || p["defaultAction"] != "SCMP_ACT_ERRNO" {
		return nil, fmt.Errorf("it does not refuse what it does not name")
	}
	kept := []any{}
	for _, r := range rules {
		rule, ok := r.(map[string]any)
		if !ok {
			return nil, fmt.Errorf("it holds a rule that is no object")
		}
		names, _ := rule["names"].([]any)
		names = slices.DeleteFunc(names, func(n any) bool {
			s, _ := n.(string)
			return s == "clone" || slices.Contains(denied, s)
		})
		if len(names) > 0 {
			rule["names"] = names
			kept = append(kept, rule)
		}
	}
	type m = map[string]any
	clone := func(index int, where string) m {
		return m{
			"names": []string{"clone"}, "action": "SCMP_ACT_ALLOW",
			"args": []m{{"index": index, "value": namespaceFlags, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}},
			where:  m{"arches": []string{"s390", "s390x"}},
		}
	}
	eperm := func(names []string) m {
		return m{"names": names, "action": "SCMP_ACT_ERRNO", "errnoRet": 1, "errno": "EPERM"}
	}
	refused := slices.DeleteFunc(slices.Clone(denied), func(s string) bool { return s == "clone3" })
	p["syscalls"] = append(kept,
		// On s390 the flags are clone's second argument.
		clone(0, "excludes"), clone(1, "includes"),
		eperm(refused),
		// A filter cannot look into clone3's structure. The C library takes
		// ENOSYS for an old kernel and uses clone.
		m{"names": []string{"clone3"}, "action": "SCMP_ACT_ERRNO", "errnoRet": 38, "errno": "ENOSYS"},
	)
	return json.MarshalIndent(p, "", "\t")
}

// writeSeccomp writes the profile for workspaces into dir and returns its path,
// which is empty when there is no default profile to start from: then podman's
// built-in one counts.
func writeSeccomp(dir string) (string, error) {
	for _, src := range seccompSources {
		data, err := os.ReadFile(src)
		if err != nil {
			continue
		}
		data, err = tightenSeccomp(data)
		if err != nil {
			return "", fmt.Errorf("seccomp profile %s cannot be used: %w: reinstall the package that it is from (golang-github-containers-common or containers-common)", src, err)
		}
		path := filepath.Join(dir, "seccomp.json")
		return path, writeFile(path, data)
	}
	return "", nil
}

// Seccomp is the path of the seccomp profile for workspaces as podman sees it,
// empty for podman's own default.
func (c *Conn) Seccomp() string {
	if c.seccomp != "" && c.setup != nil {
		return c.setup.base + "/s/" + filepath.Base(c.seccomp)
	}
	return c.seccomp
}
