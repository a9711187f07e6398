#!/bin/bash
. "$(dirname "$0")/rig.sh"
serve --pool mem:256MiB
for name in five-hundred four-thousand; do
  lba=512
  [ $name = five-hundred ] || lba=4096
  ringway volume create $name 64MiB --lba $lba >/dev/null
  for volume in "$tcp/$name" "openvstorage:$name"; do
    io "$volume" 'write -P 1 0 1M' 'write -P 2 1000 3000' 'write -P 3 4095 2' flush 'read -P 1 0 1000' 'read -P 2 1000 3000' \
      'read -P 3 4095 2' 'read -P 1 4097 100000' 'write -z 100 10000' 'read -P 1 0 100' 'read -P 0 100 10000' 'read -P 1 10100 4096' \
      'write -z -u 64k 64k' 'read -P 0 64k 64k' 'discard 128k 128k' 'read -P 0 128k 128k' 'discard 300001 5000' 'read -P 1 256k 30000' \
      'writev -P 7 512k 512 4096 512 1k 100 412' 'readv -P 7 512k 100 6532' 'write -P 9 2M 2M' 'read -P 9 2M 2M' \
      'aio_write -P 5 8M 64k' 'aio_write -P 6 9M 1M' 'aio_flush' 'read -P 6 9M 1M' 'read -P 5 8M 64k'
    more=(-t none)
    io "$volume" 'write -P 8 32M 4M' 'read -P 8 32M 4M' 'write -f -P 4 32M 4k' 'read -P 4 32M 4k'
    more=()
    fails 'Input/output error' io "$volume" 'write 64M 4k'
  done
done
