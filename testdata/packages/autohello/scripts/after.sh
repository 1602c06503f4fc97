#!/bin/sh
# Runs last, once everything is installed.
set -e
test -f "$HOME/autohello.before"
test -x "$DESTDIR/usr/bin/autohello"
echo "autohello: after"
