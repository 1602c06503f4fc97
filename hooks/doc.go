// Package hooks is what stands between a push and the farm: pre-receive looks
// at what is pushed before any ref moves, post-receive hands over to a running
// Quarry. Quarry's own SSH server puts both into its repositories, and
// [Install] puts them into any bare repository of another git server, which is
// the plugin form. doc/push.md is the description for people.
//
// A hook gets what it needs from its environment:
//
//	QUARRY_USER, QUARRY_NAME, QUARRY_EMAIL, QUARRY_KEY   who pushes (key: fingerprint)
//	QUARRY_ROLE, QUARRY_PACKAGES                         what they may do; absent: the server
//	                                                     has decided, they may push here
//	QUARRY_PACKAGE    package of this repository; absent: the folder's name without .git
//	QUARRY_SOCKET     control socket of the running Quarry
//	QUARRY_SPOOL      folder for pushes that find no Quarry running
//	QUARRY_CHANNEL    channel of a push that names none
//	QUARRY_CHANNELS   channels there are, with blanks between; absent: any is taken
//	QUARRY_SSH        how people reach this Quarry, e.g. "ssh -p 2222 farm.example.org"
//	QUARRY_URL        how people reach the repository, e.g. ssh://farm.example.org:2222/zlib.git
//	QUARRY_ALIVE_FD   a pipe that ends when the client is gone; following stops then
//
// Where QUARRY_USER is absent, the pusher is who the git server says:
// GL_USER (gitolite), GITEA_PUSHER_NAME with GITEA_PUSHER_EMAIL (Gitea,
// Forgejo), GL_USERNAME (GitLab), REMOTE_USER (git http-backend), and at last
// the Unix user. That is as much trust as the server deserves: whoever can set
// the environment of its hooks can be anybody. Of clients, only those can whom
// sshd_config lets with AcceptEnv or PermitUserEnvironment; do not list any of
// these names there.
package hooks
