// Package sshkey keeps keys of the farm's own, in the form that OpenSSH writes.
package sshkey

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/crypto/ssh"
)

// Open reads a key, or makes it when there is none: Ed25519, readable by its owner
// only. The public half is written beside it, with .pub behind its name. what is
// the key in words, e.g. "host key".
func Open(path, what string) (ssh.Signer, error) {
	signer, err := Read(path, what)
	if !errors.Is(err, fs.ErrNotExist) {
		return signer, err
	}
	if err := create(path); err != nil {
		return nil, fmt.Errorf("%s %s cannot be made: %w", what, path, err)
	}
	return Read(path, what)
}

// Read reads a key that is there already. One that others than its owner may read
// is refused, and so is one that asks for a passphrase.
func Read(path, what string) (ssh.Signer, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("%s cannot be read: %w", what, err)
	}
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("%s cannot be read: %w", what, err)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("%s %s can be read by others (mode %o): chmod 600 it, and if others may have read it, remove it and let quarry make another", what, path, info.Mode().Perm())
	}
	signer, err := ssh.ParsePrivateKey(data)
	if asks := new(ssh.PassphraseMissingError); errors.As(err, &asks) {
		return nil, fmt.Errorf("%s %s asks for a passphrase: use one without, or keep it in an agent", what, path)
	}
	if err != nil {
		return nil, fmt.Errorf("%s %s is broken: %w; put it back from a copy, or remove it and let quarry make another, which every client will ask about", what, path, err)
	}
	if signer.PublicKey().Type() != ssh.KeyAlgoED25519 {
		return nil, fmt.Errorf("%s %s is of type %s: use one made with ssh-keygen -t ed25519", what, path, signer.PublicKey().Type())
	}
	return signer, nil
}

func create(path string) (err error) {
	pub, priv, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return err
	}
	block, err := ssh.MarshalPrivateKey(priv, "quarry")
	if err != nil {
		return err
	}
	sshPub, err := ssh.NewPublicKey(pub)
	if err != nil {
		return err
	}
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	// Mode 0600 from its birth.
	f, err := os.CreateTemp(dir, ".key-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(pem.EncodeToMemory(block))
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	// A link does not replace: of two daemons that start at once, one wins.
	if err := os.Link(f.Name(), path); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := d.Sync(); err != nil {
		return err
	}
	return os.WriteFile(path+".pub", ssh.MarshalAuthorizedKey(sshPub), 0o644)
}
