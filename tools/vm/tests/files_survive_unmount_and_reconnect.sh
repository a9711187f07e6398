#!/bin/bash
# limit: 240
# disk: 4 GiB
# kernels: backports bookworm
#
# The first thing anybody does: discover, connect, make a file system, copy files, unmount, disconnect; then the target
# is stopped and started, and what comes back over a new connection is what went in. Of Ringway also by the kernel's own client of network
# block devices, over two connections, which then makes a file system of its own.
. tests/guest-steps.sh

fresh_target files 1GiB

step "discovery lists the volume"
nvme discover --transport tcp --traddr $ADDRESS --trsvcid $PORT | tee /tmp/discovered
grep -q "subnqn: *$(nqn_of files)$" /tmp/discovered

attach files
[ "$(blockdev --getsize64 "$DEVICE")" = $((1 << 30)) ]
nvme id-ctrl "$DEVICE" | sed -n '1,6p'
nvme id-ns "$DEVICE" | sed -n '1,4p'

step "a file system and files"
mkfs.ext4 -q "$DEVICE"
mkdir -p /tmp/mounted
mount "$DEVICE" /tmp/mounted
cp -r /usr/bin /tmp/mounted/programs
cp /mnt/host/tests/*.sh /tmp/mounted/
(cd /tmp/mounted && find . -type f -print0 | sort -z | xargs -0 sha256sum) >/tmp/sums
step "$(wc -l </tmp/sums) files, $(du -sm /tmp/mounted | cut -f1) MiB"
umount /tmp/mounted
detach files

step "the target stops and starts"
target_stop
target_start

attach files
fsck.ext4 -fn "$DEVICE" >/tmp/fsck || { cat /tmp/fsck; fail "the file system is damaged"; }
mount -o ro "$DEVICE" /tmp/mounted
(cd /tmp/mounted && sha256sum --quiet --check /tmp/sums)
step "every file is as it was"
umount /tmp/mounted
detach files

if [ "$WHICH" = ringway ]; then
  step "the same as a network block device"
  modprobe nbd
  ringway export add nbd files --control $CONTROL --json
  DEVICE=/dev/nbd0
  nbd-client -unix /run/ringway/nbd/files.sock -N files -connections 2 $DEVICE
  nbd_is_there() { [ "$(blockdev --getsize64 $DEVICE)" = $((1 << 30)) ]; }
  wait_until 20 "the network block device" nbd_is_there
  # more than one connection to what can be flushed by any of them, with trim, zeros and FUA
  step "connections $(ringway export list --json --control $CONTROL | jq '.[0].connections'), discards $(cat /sys/block/nbd0/queue/discard_max_bytes)"
  [ "$(ringway export list --json --control $CONTROL | jq '.[0].connections')" = 2 ] || fail "not by two connections"
  [ "$(cat /sys/block/nbd0/queue/discard_max_bytes)" -gt 0 ] || fail "the kernel was not told of trim"
  mount -o ro "$DEVICE" /tmp/mounted
  (cd /tmp/mounted && sha256sum --quiet --check /tmp/sums)
  umount /tmp/mounted
  blkdiscard --force "$DEVICE"
  [ "$(dd if="$DEVICE" bs=1M count=16 iflag=direct status=none | tr -d '\0' | wc -c)" = 0 ] || fail "what was trimmed is not zeros"
  mkfs.ext4 -q "$DEVICE"
  mount "$DEVICE" /tmp/mounted
  fio --name=verify --directory=/tmp/mounted --direct=1 --ioengine=libaio --iodepth=8 --rw=randwrite --bs=4k --size=16m \
    --verify=crc32c --verify_fatal=1 --do_verify=1 --fsync=64 --output-format=terse >/tmp/fio.nbd
  umount /tmp/mounted
  fsck.ext4 -fn "$DEVICE" >/tmp/fsck || { cat /tmp/fsck; fail "the file system is damaged"; }
  nbd-client -d $DEVICE
  ! dmesg | grep -iE "nbd0: .*(error|failed)|I/O error, dev nbd0" || fail "the kernel has seen errors"
fi
target_stop
