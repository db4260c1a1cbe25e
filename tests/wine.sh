#!/bin/sh
# usage: wine.sh PROGRAM [ARGUMENT...] < input > output
#
# Runs a Windows program of the tests. They say why they fail: one that fails in silence was ended by Wine, as was seen
# once, soon after its own start, and runs once more, with Wine's messages.
set -u
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
cat > "$room/input"
for channels in -all err+all,fixme-all; do
    WINEDEBUG=$channels wine "$@" < "$room/input" > "$room/output" 2> "$room/errors"
    status=$?
    [ "$status" -ne 0 ] && [ ! -s "$room/errors" ] || break
done
cat "$room/errors" >&2
cat "$room/output"
exit "$status"
