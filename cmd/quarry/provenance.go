package main

import (
	"crypto/sha256"
	"encoding/hex"
	"io"
	"os"
	"sync"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/config"
	"github.com/Morphux/quarry/provenance"
	"github.com/Morphux/quarry/results"
	"github.com/Morphux/quarry/trust"
)

// binarySum is the SHA-256 of the binary that runs, also where another one stands
// under its name by now; "" where it cannot be read.
var binarySum = sync.OnceValue(func() string {
	f, err := os.Open("/proc/self/exe")
	if err != nil {
		return ""
	}
	defer f.Close()
	return sumOf(f)
})

// sumOf is the SHA-256 of what can be read; "" where that ends in an error.
func sumOf(r io.Reader) string {
	h := sha256.New()
	if _, err := io.Copy(h, r); err != nil {
		return ""
	}
	return hex.EncodeToString(h.Sum(nil))
}

// logSum is the SHA-256 of a build's log as it stands.
func (f *stages) logSum(b quarry.Build) string {
	log, err := f.logs.Open(b.Number)
	if err != nil {
		return ""
	}
	defer log.Close()
	return sumOf(log)
}

// prover attests how successes were made; nil where nothing is signed.
func prover(c *config.Config, signer *trust.Signer) func(*results.Record) (results.Provenance, error) {
	if signer == nil {
		return nil
	}
	farm := provenance.Farm{ID: provenance.BuilderID(c.Web.URL, c.Builder), Repos: sshBase(c.SSH.Listen)}
	return func(rec *results.Record) (results.Provenance, error) { return provenance.Prove(rec, farm, signer) }
}
