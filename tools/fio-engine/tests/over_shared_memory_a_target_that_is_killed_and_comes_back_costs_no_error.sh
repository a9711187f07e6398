#!/bin/bash
. "$(dirname "$0")/rig.sh"
over=shm
serve --pool "$work/pool" --pool-size 512MiB
ringway volume create v 128MiB >/dev/null
engine --volume=v --rw=randrw --bs=4k --size=64m --io_size=512m --iodepth=16 --rate_iops=4000 --time_based --runtime=8 --verify=crc32c \
  --verify_fatal=1 --verify_backlog=256 >"$work/out" 2>&1 &
fio=$!
for _ in 1 2; do
  sleep 2
  kill -9 "$target"
  wait "$target" 2>/dev/null || true
  : >"$work/ready"
  serve --pool "$work/pool"
done
wait "$fio" || { cat "$work/out" >&2; exit 1; }
