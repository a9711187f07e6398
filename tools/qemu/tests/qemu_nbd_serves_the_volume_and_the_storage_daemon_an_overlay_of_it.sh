#!/bin/bash
. "$(dirname "$0")/rig.sh"
serve --pool mem:256MiB
ringway volume create v 64MiB >/dev/null
io "$tcp/v" 'write -P 9 0 8M'

# nbd COMMAND...: by a client without the driver.
nbd() {
  local args=() said
  for command in "$@"; do args+=(-c "$command"); done
  said=$(timeout 60 qemu-io -f raw "${args[@]}" "nbd+unix:///disk?socket=$run/nbd.sock" 2>&1) || { echo "$said" >&2; return 1; }
  ! grep -iE 'fail|error' <<<"$said" >&2
}
ends() {
  kill -TERM "${started[-1]}"
  wait "${started[-1]}"
  rm -f "$run/nbd.sock"
}

ringway-qemu qemu-nbd -f raw -x disk -k "$run/nbd.sock" --discard=unmap --persistent "$tcp/v" >>log 2>&1 &
started+=($!)
wait_for "qemu-nbd listens" test -S "$run/nbd.sock"
nbd 'read -P 9 0 8M' 'write -P 1 0 8M' 'write -z 1M 1M' flush 'read -P 0 1M 1M'
fails 'writer' io openvstorage:v 'write 0 4k'
ends

img create -q -f qcow2 -b "$tcp/v" -F raw overlay.qcow2
# On a thread of its own: requests come back to the thread that they came from. (Version 7.2's own NBD server fails an assertion on such a
# thread when its client leaves.)
case $(qemu-img --version) in *' 7.2.'*) thread= ;; *) thread=,iothread=thread ;; esac
ringway-qemu qemu-storage-daemon --object iothread,id=thread --blockdev driver=file,filename=overlay.qcow2,node-name=file --blockdev driver=qcow2,file=file,node-name=disk \
  --nbd-server "addr.type=unix,addr.path=$run/nbd.sock" --export "type=nbd,id=disk,node-name=disk,writable=on$thread" >>log 2>&1 &
started+=($!)
wait_for "the storage daemon listens" test -S "$run/nbd.sock"
nbd 'read -P 1 0 1M' 'read -P 0 1M 1M' 'read -P 1 2M 6M' 'write -P 2 4M 1M' 'read -P 1 5M 1M'
# The volume has a reader alone, and is as it was until the overlay is committed.
io openvstorage:v 'read -P 1 4M 1M' 'write -P 3 16M 64k'
ends
img commit -q overlay.qcow2
io openvstorage:v 'read -P 1 3M 1M' 'read -P 2 4M 1M' 'read -P 3 16M 64k'
