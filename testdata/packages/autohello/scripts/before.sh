#!/bin/sh
# Runs first. What it leaves in HOME, after.sh finds again.
set -e
echo "autohello: before"
: >"$HOME/autohello.before"
