#!/bin/bash
. "$(dirname "$0")/rig.sh"
head -c 96M /dev/urandom >disk.img
serve --pool "$work/pool" --pool-size 512MiB
ringway volume create v 96MiB >/dev/null
for volume in "$tcp/v" openvstorage:v; do
  timeout 120 ringway-qemu qemu-img convert -q -n -r 24M -f raw -O raw disk.img "$volume" &
  copying=$!
  for _ in 1 2; do
    sleep 1
    stop
    serve --pool "$work/pool"
  done
  wait "$copying"
  img compare -q -f raw -F raw disk.img "$volume"
done
# Without it, the error comes at once.
timeout 120 ringway-qemu qemu-img convert -q -n -r 24M -f raw -O raw disk.img "$tcp/v:enable-ha=off" 2>said &
copying=$!
sleep 1
stop
begun=$SECONDS
if wait "$copying"; then echo "the copy did not fail" >&2; exit 1; fi
[ $((SECONDS - begun)) -lt 20 ] || { echo "it took $((SECONDS - begun)) s" >&2; exit 1; }
has "$(cat said)" 'error while writing'
