package hooks

import (
	"fmt"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/Morphux/quarry"
)

// Settings are what an installed hook was told on its command line. The
// environment goes before them, except for Package.
type Settings struct {
	Package string // package of the repository
	Socket  string // control socket of the running Quarry
	Spool   string // folder for pushes that find no Quarry running; "": none
	Channel string // channel of a push that names none; "": the daemon's default
}

// Env is where and for whom a hook runs.
type Env struct {
	Settings
	Repo     string          // absolute path of the bare repository
	Identity quarry.Identity // who pushes
	From     string          // the variable that says so, or "unix"
	Channels []Channel       // that there are; nil: see the spool (PreReceive does)
	Options  []string        // what git push -o gave
	SSH      string          // how people reach this Quarry by SSH; "" when they do not
	URL      string          // how people reach the repository; "" when that is not known
	AliveFD  int             // descriptor that ends when the client is gone; 0: none
	Cert     Certificate     // of a push that was signed (git push --signed)
	Environ  []string        // whole environment: git needs it to see the quarantine
}

// NewEnv reads an environment as git makes it for hooks, which run in dir.
func NewEnv(environ []string, dir string, s Settings) (Env, error) {
	env := map[string]string{}
	for _, kv := range environ {
		if k, v, ok := strings.Cut(kv, "="); ok {
			env[k] = v
		}
	}
	repo := env["GIT_DIR"]
	if repo == "" {
		repo = "."
	}
	if !filepath.IsAbs(repo) {
		repo = filepath.Join(dir, repo)
	}
	repo = filepath.Clean(repo)
	e := Env{Settings: s, Repo: repo, Environ: environ, SSH: env["QUARRY_SSH"], URL: env["QUARRY_URL"]}
	for _, v := range []struct {
		to   *string
		name string
	}{{&e.Socket, "QUARRY_SOCKET"}, {&e.Spool, "QUARRY_SPOOL"}, {&e.Channel, "QUARRY_CHANNEL"}} {
		if env[v.name] != "" {
			*v.to = env[v.name]
		}
	}
	if e.Package == "" {
		e.Package = env["QUARRY_PACKAGE"]
	}
	if e.Package == "" {
		e.Package = packageOf(repo)
	}
	if err := quarry.CheckName(e.Package); err != nil {
		return Env{}, fmt.Errorf("repository %s is no package's: %w (quarry hook install --package NAME says which it is)", repo, err)
	}
	for word := range strings.FieldsSeq(env["QUARRY_CHANNELS"]) {
		e.Channels = append(e.Channels, parseChannel(word))
	}
	n, _ := strconv.Atoi(env["GIT_PUSH_OPTION_COUNT"])
	for i := range min(n, 100) {
		e.Options = append(e.Options, env[fmt.Sprintf("GIT_PUSH_OPTION_%d", i)])
	}
	if fd, err := strconv.Atoi(env["QUARRY_ALIVE_FD"]); err == nil && fd > 2 {
		e.AliveFD = fd
	}
	e.Cert = certificateOf(env)
	e.Identity, e.From = identity(env)
	return e, nil
}

// packageOf is the package of a bare repository by its path: /srv/zlib.git is
// zlib's, and so is a working copy's /srv/zlib/.git.
func packageOf(repo string) string {
	base := filepath.Base(repo)
	if base == ".git" {
		base = filepath.Base(filepath.Dir(repo))
	}
	return strings.TrimSuffix(base, ".git")
}

func identity(env map[string]string) (quarry.Identity, string) {
	var id quarry.Identity
	// Without a role, the server in front has decided who may push where.
	id.Role = quarry.RoleMaintainer
	if r, ok := env["QUARRY_ROLE"]; ok {
		id.Role = quarry.Role(r)
		id.Packages, id.Only = strings.Fields(env["QUARRY_PACKAGES"]), strings.Fields(env["QUARRY_ONLY"])
	}
	for _, v := range [][2]string{
		{"QUARRY_USER", "QUARRY_EMAIL"}, {"GL_USER", ""}, {"GITEA_PUSHER_NAME", "GITEA_PUSHER_EMAIL"},
		{"GL_USERNAME", ""}, {"REMOTE_USER", ""},
	} {
		if env[v[0]] == "" {
			continue
		}
		id.User = env[v[0]]
		if v[1] != "" {
			id.Email = env[v[1]]
		}
		if v[0] == "QUARRY_USER" {
			id.Name, id.Key = env["QUARRY_NAME"], env["QUARRY_KEY"]
		}
		return tidy(id), v[0]
	}
	if u, err := user.Current(); err == nil {
		id.User = u.Username
		id.Name, _, _ = strings.Cut(u.Name, ",") // the rest of GECOS is telephone numbers
	}
	return tidy(id), "unix"
}

// tidy makes what another server calls a person fit for a record: logins there
// may be addresses, or hold blanks.
func tidy(id quarry.Identity) quarry.Identity {
	id.Name, id.Email, id.Key = clean(cut(id.Name)), clean(cut(id.Email)), clean(cut(id.Key))
	if quarry.CheckUser(id.User) == nil {
		return id
	}
	login := clean(cut(id.User))
	local, _, isMail := strings.Cut(login, "@")
	if id.Name == "" {
		id.Name = login
	}
	if isMail && id.Email == "" {
		id.Email = login
	}
	id.User = strings.Trim(strings.Map(func(r rune) rune {
		if r < 128 && quarry.CheckUser("x"+string(r)+"x") == nil {
			return r
		}
		return '-'
	}, local), "-._")
	if quarry.CheckUser(id.User) != nil {
		id.User = "unknown"
	}
	return id
}

func cut(s string) string { return s[:min(len(s), 200)] }

// Environ is the environment that tells a hook who pushes to what. It is what
// [NewEnv] reads.
func Environ(id quarry.Identity, pkg string) []string {
	return []string{
		"QUARRY_USER=" + id.User, "QUARRY_NAME=" + id.Name, "QUARRY_EMAIL=" + id.Email, "QUARRY_KEY=" + id.Key,
		"QUARRY_ROLE=" + string(id.Role), "QUARRY_PACKAGES=" + strings.Join(id.Packages, " "),
		"QUARRY_ONLY=" + strings.Join(id.Only, " "),
		"QUARRY_PACKAGE=" + pkg,
	}
}

// options are push options that were understood.
type options struct {
	follow  bool
	confirm bool // however much it causes
	channel string
	group   string // to land with
}

// readOptions reads git push -o. Wrong ones are refused, unknown ones warned
// about: another hook of the same repository may know them.
func (e Env) readOptions() (o options, warnings []string, err error) {
	o.channel = e.Channel
	for _, opt := range e.Options {
		key, value, has := strings.Cut(opt, "=")
		switch {
		case opt == "follow":
			o.follow = true
		case opt == "confirm":
			o.confirm = true
		case key == "channel" && has:
			if err := quarry.CheckChannel(value); err != nil {
				return o, warnings, fmt.Errorf("push option channel: %w", err)
			}
			if e.Channels != nil && e.find(value) == nil {
				var names []string
				for _, c := range e.Channels {
					names = append(names, c.Name)
				}
				return o, warnings, fmt.Errorf("push option channel: there is no channel %s: there is %s", value, strings.Join(names, ", "))
			}
			o.channel = value
		case key == "group" && has:
			if err := quarry.CheckGroup(value); err != nil {
				return o, warnings, fmt.Errorf("push option group: %w", err)
			}
			o.group = value
		default:
			warnings = append(warnings, fmt.Sprintf("push option %.60q means nothing here: -o follow, -o confirm, -o channel=NAME and -o group=NAME do", opt))
		}
	}
	return o, warnings, nil
}
