#!/bin/bash
# limit: 420
# disk: 1 GiB
# kernels: backports bookworm
# host: vhost
#
# A volume is this machine's vhost-user disk: two queues, packed rings, resuming what was in flight. It is partitioned, has a file
# system, is verified by fio, gives space back, grows while it is in use, and outlives three SIGKILLs of its target under load
# without the guest seeing an error.
. tests/guest-steps.sh

# the only disk of its size; the others are the root and the pool's disk
for DEVICE in /dev/vd?; do
  [ "$(blockdev --getsize64 "$DEVICE")" != $((1 << 30)) ] || [ "$(cat /sys/block/"$(basename "$DEVICE")"/serial)" = disk0 ] || break
done
NAME=$(basename "$DEVICE")
step "$DEVICE, serial $(cat "/sys/block/$NAME/serial")"
[ "$(cat "/sys/block/$NAME/serial" | wc -c)" -ge 20 ] || fail "the disk does not say who it is"
[ "$(ls "/sys/block/$NAME/mq" | wc -l)" = 2 ] || fail "not two queues: $(ls "/sys/block/$NAME/mq")"
features=$(cat "/sys/block/$NAME/device/features")
[ "${features:34:1}" = 1 ] || fail "the rings are not packed: $features"
[ "${features:29:1}${features:28:1}" = 11 ] || fail "no event index, no indirect descriptors: $features"
[ "$(cat "/sys/block/$NAME/queue/write_cache")" = "write back" ] || fail "no write cache"
[ "$(cat "/sys/block/$NAME/queue/physical_block_size")" = 4096 ] || fail "no topology"
dmesg --clear 2>/dev/null || dmesg -c >/dev/null

step "two partitions, and a file system on the first"
printf 'n\np\n1\n\n+256M\nn\np\n2\n\n+512M\nw\n' | busybox fdisk "$DEVICE" >/dev/null 2>&1 || true
blockdev --rereadpt "$DEVICE" || true
wait_until 10 "the second partition" test -b "${DEVICE}2"
mkfs.ext4 -q "${DEVICE}1"
mkdir -p /tmp/mounted
mount "${DEVICE}1" /tmp/mounted
cp /usr/bin/bash /tmp/mounted/
sync
umount /tmp/mounted
fsck.ext4 -fn "${DEVICE}1" >/tmp/fsck 2>&1 || { cat /tmp/fsck; fail "the file system is damaged"; }

step "fio verifies"
fio --name=verify --filename="${DEVICE}2" --direct=1 --ioengine=libaio --iodepth=16 --rw=randwrite --bsrange=512-128k --size=64m --verify=crc32c --verify_fatal=1 --do_verify=1 --output-format=terse >/tmp/fio.verify \
  || { cat /tmp/fio.verify; fail "fio failed"; }

step "blkdiscard gives space back"
used=$(ask used)
blkdiscard "${DEVICE}2"
sync
freed() { [ $(($(ask used) + (32 << 20))) -lt "$used" ]; }
wait_until 30 "space of what was discarded" freed
dd if="${DEVICE}2" of=/tmp/start bs=1M count=1 iflag=direct status=none
[ "$(tr -d '\0' </tmp/start | wc -c)" = 0 ] || fail "what was discarded is not zero"

step "it grows while it is mounted"
mount "${DEVICE}1" /tmp/mounted
ask resize 2GiB
size_is() { [ "$(blockdev --getsize64 "$DEVICE")" = "$1" ]; }
wait_until 20 "2 GiB" size_is $((2 << 30))
cmp /usr/bin/bash /tmp/mounted/bash
dd if=/usr/bin/bash of="$DEVICE" bs=1M seek=2046 count=1 oflag=direct conv=notrunc,sync status=none
dd if="$DEVICE" of=/tmp/end bs=1M skip=2046 count=1 iflag=direct status=none
head -c 100000 /tmp/end >/tmp/end.100k
head -c 100000 /usr/bin/bash | cmp - /tmp/end.100k

step "killed under load"
fio --name=killed --filename="${DEVICE}2" --direct=1 --ioengine=libaio --iodepth=16 --numjobs=1 --rw=randwrite --bs=4k --size=64m \
  --rate_iops=600 --verify=crc32c --verify_fatal=1 --do_verify=1 --randseed=$RANDOM >/tmp/fio.killed 2>&1 &
FIO=$!
for round in 1 2 3; do
  sleep 4
  kill -0 $FIO 2>/dev/null || fail "fio ended before round $round: $(tail -n 5 /tmp/fio.killed)"
  ask kill
  sleep 1
  ask start
  step "round $round: killed and started again"
done
wait $FIO || { cat /tmp/fio.killed; fail "fio failed"; }
grep -E 'err=|WRITE:|READ:' /tmp/fio.killed
grep -q 'err= 0' /tmp/fio.killed
cmp /usr/bin/bash /tmp/mounted/bash
umount /tmp/mounted
fsck.ext4 -fn "${DEVICE}1" >/tmp/fsck 2>&1 || { cat /tmp/fsck; fail "the file system is damaged"; }
! dmesg | grep -iE "I/O error|blk_update_request|Buffer I/O|virtio_blk.*error" || fail "the kernel has seen an error"
ask stop
