// Package sshd is the door for people: git over SSH, and Quarry's verbs over
// SSH (ssh farm status).
//
// Whoever connects is known by their public key alone; the user name in
// user@host means nothing. Only stock git receive-pack and upload-pack are
// run, on a repository that is named as NAME.git and nothing else, and the
// verbs that [Options.Verbs] knows. There is no shell, no forwarding, no
// subsystem and no environment but GIT_PROTOCOL.
//
// A key counts only when its owner has signed with it. The SSH protocol lets a
// client ask about keys that it does not hold, and servers that remember the
// key asked about last give such a client another's rights (CVE-2024-45337).
// Here every key may be asked about, known or not, so that asking tells
// nothing about who is known; and what counts is what the SSH library says of
// the one key whose signature it has verified.
package sshd
