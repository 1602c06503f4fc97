package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/mail"
	"net/url"
	"path/filepath"
	"time"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/config"
	"github.com/Morphux/quarry/control"
	"github.com/Morphux/quarry/events"
	"github.com/Morphux/quarry/internal/human"
	"github.com/Morphux/quarry/keys"
	"github.com/Morphux/quarry/notify"
	"github.com/Morphux/quarry/queue"
	"github.com/Morphux/quarry/results"
)

// newNotify makes who tells people and programs; nil where there is nobody to be
// told.
func newNotify(c *config.Config, farm *control.Farm, happened *events.Log, res *results.Repo, people *keys.Store, log *slog.Logger) (*notify.Notifier, error) {
	if c.Mail.Server == "" && len(c.Webhooks) == 0 {
		return nil, nil
	}
	t := teller{farm: farm, results: res, people: people}
	o := notify.Options{
		Dir: filepath.Join(c.State, "notify"), Events: happened, Results: res, Mail: mailer(c),
		People: t.readers, Live: t.live, Report: t.report, Origin: t.origin, Campaign: t.campaign,
		URL: c.Web.Base(), SSH: sshCommand(c.SSH.Listen),
		MaxRecipients: c.Mail.MaxRecipients, Settle: time.Duration(c.Mail.Settle), GiveUp: time.Duration(c.Mail.GiveUp), Log: log,
	}
	for _, h := range c.Webhooks {
		o.Hooks = append(o.Hooks, notify.Hook{Name: h.Name, URL: h.URL, SecretFile: c.SecretFile(h), Events: h.Events, Packages: h.Packages,
			Timeout: time.Duration(h.Timeout), GiveUp: time.Duration(h.GiveUp), Agent: "Quarry/" + version, Farm: c.Builder})
	}
	return notify.New(o)
}

// mailer is how letters are sent; nil where none are.
func mailer(c *config.Config) *notify.Mail {
	from, err := mail.ParseAddress(c.Mail.From)
	if c.Mail.Server == "" || err != nil { // the configuration was checked
		return nil
	}
	password, ca := c.MailFiles()
	return &notify.Mail{Server: c.Mail.Server, TLS: c.Mail.TLS, CA: ca, User: c.Mail.User, PasswordFile: password,
		From: *from, Farm: c.Builder, Agent: "Quarry/" + version}
}

// sshCommand is how people ask an SSH listener, e.g. ssh -p 2222 farm.
func sshCommand(listen string) string {
	u, err := url.Parse(sshBase(listen))
	switch {
	case err != nil:
		return ""
	case u.Port() == "":
		return "ssh " + u.Hostname()
	}
	return "ssh -p " + u.Port() + " " + u.Hostname()
}

// teller answers what the notifier asks of the farm.
type teller struct {
	farm    *control.Farm
	results *results.Repo
	people  *keys.Store
}

func (t teller) readers() (out []notify.Person, err error) {
	list, _, err := t.people.List()
	if err != nil {
		return nil, err
	}
	for _, p := range list {
		if !p.Disabled {
			out = append(out, notify.Person{User: p.User, Name: p.Name, Email: p.Email, Mail: p.Mail, Admin: p.Role == quarry.RoleAdmin})
		}
	}
	return out, nil
}

func (t teller) live(cause notify.Cause) bool {
	f := queue.Filter{Live: true, Channel: cause.Channel}
	if cause.Kind == notify.ByPush {
		f.Package, f.Version, f.Commit = cause.Package, cause.Version, cause.Source
	}
	for _, b := range t.farm.Queue.List(f) {
		if notify.CauseOfBuild(&b) == cause {
			return true
		}
	}
	return false
}

// known gives a build, as far as the queue still has it.
func (t teller) known(b notify.Build) quarry.Build {
	if q, err := t.farm.Queue.Get(b.Number); err == nil && q.State == b.Status && q.Record == b.Record {
		return q
	}
	return quarry.Build{Number: b.Number, Arch: b.Arch, Nonce: b.Nonce, State: b.Status, Record: b.Record, Created: b.Created,
		Key:     quarry.BuildKey(b.Target, b.Source, b.Nonce),
		Release: quarry.Release{Package: b.Package, Version: b.Version, Channel: b.Channel, Commit: b.Source, Pushed: b.Pushed, Packager: b.Packager}}
}

func (t teller) report(ctx context.Context, b notify.Build) (*notify.Report, error) {
	if t.farm.Why == nil {
		return nil, nil
	}
	why, err := t.farm.Why.Why(ctx, t.known(b))
	if err != nil || why.Failure == nil {
		return nil, err
	}
	r := &notify.Report{Failure: *why.Failure, Log: why.Log, Reproduce: why.Reproduce}
	s := why.Since
	if s == nil {
		return r, nil
	}
	r.Last = fmt.Sprintf("build %d", s.Build)
	if s.Version != b.Version {
		r.Last += " of " + s.Version
	}
	if !s.Ended.IsZero() {
		r.Last += ", " + human.Ago(s.Ended, time.Now())
	}
	for _, d := range s.Recipe {
		r.Since = append(r.Since, d.Path+": "+d.What)
	}
	r.Since = append(r.Since, s.Dependencies...)
	for _, line := range append([]string{s.Base, s.Instance}, s.Builder...) {
		if line != "" {
			r.Since = append(r.Since, line)
		}
	}
	return r, nil
}

// origin finds a build by its number: the queue forgets those of the past.
func (t teller) origin(_ context.Context, channel string, number int64) (quarry.Build, bool) {
	if b, err := t.farm.Queue.Get(number); err == nil {
		return b, true
	}
	target, commit, ok, err := t.results.TargetOf(channel, number)
	if err != nil || !ok {
		return quarry.Build{}, false
	}
	at, err := t.results.SnapshotAt(channel, commit)
	if err != nil {
		return quarry.Build{}, false
	}
	rec, err := at.Get(target.Package, target.Version, target.Arch)
	if err != nil {
		return quarry.Build{}, false
	}
	return quarry.Build{Number: number, Arch: target.Arch, State: rec.Status, Record: commit,
		Release: quarry.Release{Package: rec.Package, Version: rec.Version, Channel: channel, Commit: rec.Source, Packager: rec.Packager}}, true
}

func (t teller) campaign(ctx context.Context, id string) (*notify.Campaign, error) {
	list, err := t.farm.Queue.MassRebuilds(ctx)
	if err != nil {
		return nil, err
	}
	for _, c := range list {
		if c.ID != id {
			continue
		}
		r, err := t.farm.Queue.Report(ctx, id)
		if err != nil {
			return nil, err
		}
		out := &notify.Campaign{ID: id, By: c.By, Reason: c.Reason, Over: c.Over(), Cancelled: c.Cancelled, Total: r.Total, Succeeded: r.Succeeded, Failed: r.Failed}
		for _, f := range r.Failures {
			if f.New {
				out.New = append(out.New, notify.Broken{Target: f.Target(), Build: f.Build, Since: f.Since})
			}
		}
		return out, nil
	}
	return nil, errors.New("there is none of this name")
}
