#!/bin/bash
. "$(dirname "$0")/rig.sh"
serve --pool "$work/pool" --pool-size 256MiB
image disk.img
for volume in "$tcp/over-tcp" openvstorage+shm:over-shm openvstorage:plain; do
  img create -q -f raw "$volume" 16M
  fails 'already' img create -f raw "$volume" 16M
  has "$(img info -f raw "$volume")" 'virtual size: 16 MiB (16777216 bytes)'
  has "$(img info -f raw "$volume")" "image: $volume"
  img convert -q -n -f raw -O raw disk.img "$volume"
  img compare -q -f raw -F raw disk.img "$volume"
  # Holes were not written, and are told as such.
  has "$(img map -f raw --output=json "$volume")" '"start": 4194304, "length": 4194304, "depth": 0, "present": true, "zero": true, "data": false'
  img convert -q -f raw -O raw "$volume" back.img
  cmp disk.img back.img
  [ "$(stat -c %b back.img)" -lt $((13 << 11)) ] || { echo "the hole was copied" >&2; exit 1; }
  img resize -q -f raw "$volume" 32M
  has "$(img info -f raw "$volume")" '32 MiB'
  fails 'does not shrink' img resize -f raw --shrink "$volume" 16M
  img convert -q -n -c -f raw -O raw disk.img "$volume" 2>/dev/null && exit 1
  rm back.img
done
# A volume that is made by the copy itself, out of many small pieces in parallel.
img convert -q -W -m 16 -f raw -O raw disk.img "$tcp/made"
img compare -q -f raw -F raw disk.img openvstorage:made
ringway volume show made | grep -q 16
# What a clone has from the snapshot under it is there, and a hole of the two is one.
ringway snapshot create made s >/dev/null
ringway volume clone made@s copy >/dev/null
io openvstorage:copy 'write -P 1 5M 64k'
dd if=disk.img of=changed.img bs=1M status=none
io changed.img 'write -P 1 5M 64k'
for volume in openvstorage:copy "$tcp/copy" "$tcp/made@s"; do
  img convert -q -f raw -O raw "$volume" back.img
  case $volume in *@s) cmp disk.img back.img ;; *) cmp changed.img back.img ;; esac
  [ "$(img map -f raw --output=json "$volume" | grep -c '"zero": true')" = $([ "${volume%@s}" = "$volume" ] && echo 2 || echo 1) ]
  rm back.img
done
