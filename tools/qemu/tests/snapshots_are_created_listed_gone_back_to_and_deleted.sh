#!/bin/bash
. "$(dirname "$0")/rig.sh"
serve --pool "$work/pool" --pool-size 256MiB
ringway volume create v 64MiB >/dev/null
for volume in "$tcp/v:snapshot-timeout=30" openvstorage:v; do
  opts="driver=raw,file.driver=openvstorage,file.volume=v" plain="driver=openvstorage,volume=v"
  case $volume in *tcp*) opts=$opts,file.transport=tcp,file.host=127.0.0.1,file.port=$port,file.snapshot-timeout=30 ;; esac
  io "$volume" 'write -P 1 0 1M'
  img snapshot --image-opts -c one "$opts"
  io "$volume" 'write -P 2 0 1M'
  img snapshot --image-opts -c two "$opts"
  fails 'already' img snapshot --image-opts -c two "$opts"
  io "$volume" 'write -P 3 0 1M'
  listed=$(img snapshot --image-opts -l "$opts")
  has "$listed" one
  has "$listed" two
  has "$listed" "$(date -u +%Y)"
  ringway snapshot show v@two >/dev/null
  # What a snapshot has, by QEMU's own way to ask for it, and by its name as a volume of its own.
  img convert -q --image-opts -O raw -l snapshot.name=one "$plain" one.img
  io one.img 'read -P 1 0 1M'
  case $volume in *tcp*) snapshot=$tcp/v@two ;; *) snapshot=openvstorage:v@two ;; esac
  more=(-r)
  io "$snapshot" 'read -P 2 0 1M'
  more=()
  fails 'O_RDONLY' with qemu-io -f raw -c 'write 0 4k' "$snapshot"
  img snapshot --image-opts -a one "$opts"
  io "$volume" 'read -P 1 0 1M'
  # Going back drops what came later.
  case $(img snapshot --image-opts -l "$opts") in *two*) echo "two is still there" >&2; exit 1 ;; esac
  fails 'no snapshot' img snapshot --image-opts -a two "$opts"
  fails '' img snapshot --image-opts -d two "$opts"
  img snapshot --image-opts -d one "$opts"
  [ -z "$(img snapshot --image-opts -l "$opts")" ]
done
long=$(printf 'n%.0s' $(seq 128))
fails '127' img snapshot --image-opts -c "$long" "$opts"
fails '' img snapshot --image-opts -c 'a:b' "$opts"
