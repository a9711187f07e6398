#!/bin/bash
. "$(dirname "$0")/rig.sh"
serve --pool mem:256MiB
ringway volume create v 8MiB >/dev/null
mkfifo commands
with qemu-io -f raw "$tcp/v" <commands >writer 2>&1 &
started+=($!)
exec 3>commands
prompts() { [ "$(grep -o 'qemu-io>' writer | wc -l)" -gt "$1" ]; }
# says WHAT COMMAND: one at a time, since qemu-io does not look at a second one that it has read with the first.
says() {
  local before
  before=$(grep -o 'qemu-io>' writer | wc -l)
  echo "$2" >&3
  wait_for "$2" prompts "$before"
  grep -q "$1" writer || { cat writer >&2; exit 1; }
}
wait_for "it is ready" prompts 0
says 'wrote 1048576' 'write -P 1 0 1M'
for volume in "$tcp/v" openvstorage:v; do
  fails 'writer' io "$volume" 'write 0 4k'
  more=(-r)
  io "$volume" 'read -P 1 0 1M'
  more=()
  img info "$volume" >/dev/null
done
# It becomes a reader, and the place is free.
says '' 'reopen -r'
says 'read 4096' 'read -P 1 0 4k'
io openvstorage:v 'write -P 2 0 1M'
says '' 'reopen -w'
says 'wrote 2097152' 'write -P 3 0 2M'
fails 'writer' img convert -n -f raw -O raw log openvstorage:v
echo quit >&3
exec 3>&-
wait "${started[0]}"
io "$tcp/v" 'read -P 3 0 2M' 'write -P 4 0 4k'
