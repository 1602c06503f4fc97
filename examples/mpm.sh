#!/bin/sh
# How little a client of Quarry's database needs: curl, zstd, sha256sum, tar and
# awk; and ssh-keygen, to know whom an index is of. doc/mirror.md describes what is
# read here, line by line.
#
#   export MPM_FROM=https://farm.example.org/db/testing
#   export MPM_SIGNERS=allowed_signers      # from the farm itself; blank: not verified
#   mpm.sh update
#   mpm.sh search TEXT
#   mpm.sh show NAME
#   mpm.sh install NAME ROOT                # with what it names as needed, and no more
#
# It takes the newest version of everything and keeps no account of what it has
# installed: quarry mpm does (doc/mpm.md).
set -eu

from=${MPM_FROM:?say where the channel is, e.g. https://farm.example.org/db/testing}
from=${from%/}
channel=${from##*/}
arch=${MPM_ARCH:-$(uname -m)}
signers=${MPM_SIGNERS:-}
cache=${MPM_CACHE:-$HOME/.cache/mpm.sh}
mkdir -p "$cache"

die() { echo "mpm.sh: $*" >&2; exit 1; }
get() { curl -fsS --retry 3 --max-time 600 -o "$2" "$1" || die "$1 cannot be fetched"; }
sum() { sha256sum <"$1" | cut -c 1-64; }

# field HEAD KEY: of the index for the arch, or else of noarch's.
field() {
	tr '{},' '\n\n\n' <"$1" | sed 's/^[[:space:]]*//; s/[[:space:]]*$//' | awk -v arch="\"$arch\":" -v key="\"$2\":" '
		/^"(index|older)":$/ { list = $1; next }
		/^"[^"]*":$/         { of = $1; next }
		list == "\"index\":" && index($0, key) == 1 { v = substr($0, length(key) + 1); gsub(/[" ]/, "", v); value[of] = v }
		END { if (arch in value) print value[arch]; else print value["\"noarch\":"] }'
}

# top HEAD KEY: of the head itself.
top() { tr '{},' '\n\n\n' <"$1" | sed -n "s/^[[:space:]]*\"$2\":[[:space:]]*\"\([^\"]*\)\".*/\1/p" | head -n 1; }

update() {
	new=$cache/head.new
	get "$from/head.json" "$new"
	if [ -n "$signers" ]; then
		get "$from/sig/$(sum "$new").sig" "$cache/head.sig"
		ssh-keygen -Y verify -f "$signers" -I quarry@localhost -n quarry-head -s "$cache/head.sig" <"$new" >/dev/null ||
			die "the head is not signed by one of $signers"
	fi
	[ "$(top "$new" channel)" = "$channel" ] || die "$from is another channel, $(top "$new" channel)"
	# Times as these sort as text.
	now=$(date -u +%Y-%m-%dT%H:%M:%SZ)
	[ "$(printf '%s\n' "$now" "$(top "$new" expires)" | sort | head -n 1)" = "$now" ] || die "the head has expired: the mirror is old"
	if [ -e "$cache/head.json" ] && [ "$(top "$cache/head.json" channel)" = "$channel" ]; then
		old=$(top "$cache/head.json" time)
		[ "$(printf '%s\n' "$old" "$(top "$new" time)" | sort | head -n 1)" = "$old" ] || die "the mirror goes back in time"
	fi
	name=$(field "$new" name)
	[ -n "$name" ] || die "channel $channel has nothing for $arch"
	if [ "$(sum "$cache/index" 2>/dev/null || :)" != "$(field "$new" text_sha256)" ]; then
		get "$from/$name" "$cache/index.zst"
		[ "$(sum "$cache/index.zst")" = "$(field "$new" sha256)" ] || die "$name is another file than the head says"
		zstd -qdf "$cache/index.zst" -o "$cache/index.new"
		mv "$cache/index.new" "$cache/index"
	fi
	mv "$new" "$cache/head.json"
	echo "$channel is at $(top "$cache/head.json" commit | cut -c 1-12): $(field "$cache/head.json" packages) packages for $arch"
}

# each AWK: runs for every package, with its keys in p.
each() {
	[ -e "$cache/index" ] || die "run mpm.sh update first"
	awk -v text="${2:-}" '
		function unquote(v) {
			if (v ~ /^\047/) return substr(v, 2, length(v) - 2)
			if (v !~ /^"/) return v
			v = substr(v, 2, length(v) - 2); gsub(/\\"/, "\"", v); gsub(/\\\\/, "\\", v); return v
		}
		function done() { if ("name" in p) { '"$1"' } split("", p) }
		$0 == "[[package]]" { done(); seen = 1; next }
		seen { i = index($0, " = "); if (i) p[substr($0, 1, i - 1)] = unquote(substr($0, i + 3)) }
		END { done() }' "$cache/index"
}

# key NAME KEY: one value of a package.
key() { each 'if (p["name"] == text) print p["'"$2"'"]' "$1"; }

install() {
	name=$1 root=$2
	sha=$(key "$name" artifact)
	[ -n "$sha" ] || die "$name is not in channel $channel"
	file=$cache/$sha.tar.zst
	if [ ! -e "$file" ]; then
		url=${from%/db/*}/artifacts/$(echo "$sha" | cut -c 1-2)/$sha.tar.zst
		curl -fsS --retry 3 -C - -o "$file.part" "$url" || die "$url cannot be fetched"
		[ "$(sum "$file.part")" = "$sha" ] || { rm "$file.part"; die "the artifact of $name is another one than the index says"; }
		mv "$file.part" "$file"
	fi
	# Folders that are links in the root, as /lib is, stay what they are.
	zstd -qdc "$file" | tar -xpf - -C "$root" --keep-directory-symlink --numeric-owner
	echo "$name $(key "$name" version) installed"
}

case ${1:-} in
update) update ;;
search) each 'if (index(tolower(p["name"] " " p["description"]), tolower(text))) print p["name"], p["version"] "\t" p["description"]' "${2:?what to search for}" ;;
show)
	out=$(each 'if (p["name"] == text) for (k in p) print k "\t" p[k]' "${2:?which package}")
	[ -n "$out" ] || die "$2 is not in channel $channel"
	echo "$out" | sort
	;;
install)
	name=${2:?which package} root=${3:?into which root}
	[ -d "$root" ] || die "$root is no folder"
	# ['zlib-1.3', 'java>=17'] names packages by NAME, NAME-VERSION, NAME>=VERSION.
	for need in $(key "$name" needed | tr -d "[]'\"," ); do
		pkg=${need%%[<>]*}
		while [ -z "$(key "$pkg" name)" ]; do
			case $pkg in *-*) pkg=${pkg%-*} ;; *) die "$name needs $need, which is not in channel $channel" ;; esac
		done
		(install "$pkg" "$root")
	done
	install "$name" "$root"
	;;
*) sed -n 's/^#   //p' "$0" >&2; exit 2 ;;
esac
