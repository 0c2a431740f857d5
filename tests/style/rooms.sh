#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The map cannot rot: an include that follows no arrow of the rooms' tables (sim/README.md,
# tracegen/README.md, gui/README.md, gpu_replay/README.md) or of the top level fails.
#   usage: rooms.sh REPOSITORY
set -euo pipefail
cd "$1"

# Top level: who may include whom, beside itself.
top='cli: sim tracegen gpu_replay
sim:
tracegen: sim
gpu_replay: sim tracegen
gui: sim
tests: cli sim tracegen gpu_replay gui'

# "folder/room: room room" of every row "| [`room/`](room) | purpose | room room |".
rooms_of() {
  sed -nE "s#^\| \[\`([a-z_]+)/\`\]\([a-z_]+\) \|[^|]*\| *([a-z_ ]*)\|\$#$1/\1: \2#p" "$1/README.md"
}
rooms=$(for folder in sim tracegen gui gpu_replay; do rooms_of "$folder"; done)

# Looked up, not searched by a process each: there are some two thousand includes.
declare -A known arrow
while IFS=: read -r from others; do
  known[$from]=1
  for to in $others; do arrow[$from $to]=1; done
done <<<"$top"$'\n'"$rooms"

failed=0
complain() { echo "$*" >&2; failed=1; }

while read -r file included; do
  from=${file%%/*} to=${included%%/*}
  if [ "$from" != "$to" ]; then
    [ -n "${arrow[$from $to]:-}" ] || complain "$file includes $included: $from may not include $to"
    continue
  fi
  case $from in sim | tracegen | gui | gpu_replay) ;; *) continue ;; esac
  room=${file#*/} room=${room%%/*}
  other=${included#*/} other=${other%%/*}
  [ -n "${known[$from/$room]:-}" ] || complain "$file: $from/README.md knows no room '$room'"
  [ "$room" = "$other" ] || [ -n "${arrow[$from/$room $other]:-}" ] ||
    complain "$file includes $included: $from/README.md has no arrow from $room to $other"
done < <(grep -rE '^#include "[a-z_]+/' --include='*.h' --include='*.cpp' --include='*.cu' --include='*.cuh' \
  cli sim tracegen gui tests $([ ! -d gpu_replay ] || echo gpu_replay) |
  sed -E 's/^([^:]+):#include "([^"]+)".*/\1 \2/')

# A policy stands on the interface, on what policies share and on itself; nothing else of sim.
while read -r file included; do
  case $included in sim/base/* | sim/policy/* | sim/policies/*) continue ;; esac
  complain "$file includes $included: a policy includes sim/policy/ and sim/policies/shared/ only"
done < <(grep -E '^#include "' sim/policies/*.* sim/policies/wrappers/*.* |
  sed -nE 's/^([^:]+\.(cpp|h)):#include "([^"]+)".*/\1 \3/p')

[ "$(grep -c . <<<"$rooms")" -ge 20 ] || complain "fewer than 20 rooms found: has a table changed its form?"
[ "$failed" -eq 0 ] && echo "every include follows an arrow between $(grep -c . <<<"$rooms") rooms"
exit "$failed"
