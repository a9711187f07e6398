#!/bin/bash
# limit: 240
# disk: 4 GiB
# kernels: backports
#
# A thin volume takes space as it is written, and gives it back as it is discarded; discarded blocks read as zeros.
. tests/guest-steps.sh

MIB=$((1 << 20))
fresh_target thin 1GiB
attach thin
set_bytes() { # SKIP COUNT, both in MiB: how many bytes there are not zero
  dd if="$DEVICE" bs=1M skip="$1" count="$2" iflag=direct status=none | tr -d '\0' | wc -c
}
empty=$(space_allocated thin)

step "64 MiB written; allocated before: $empty"
fio --name=fill --filename="$DEVICE" --direct=1 --ioengine=libaio --iodepth=4 --rw=write --bs=256k --size=64m --end_fsync=1 \
  --refill_buffers --output-format=terse >/tmp/fio.fill
# figures are gathered from the shards a few times a second
allocated_at_least() { [ "$(space_allocated thin)" -ge "$1" ]; }
allocated_at_most() { [ "$(space_allocated thin)" -le "$1" ]; }
wait_until 20 "64 MiB allocated" allocated_at_least $((empty + 64 * MIB))
full=$(space_allocated thin)

step "half of it discarded; allocated before: $full"
blkdiscard --offset 0 --length $((32 * MIB)) "$DEVICE"
wait_until 20 "32 MiB given back" allocated_at_most $((full - 32 * MIB))
blockdev --flushbufs "$DEVICE"
[ "$(set_bytes 0 32)" = 0 ] || fail "discarded blocks do not read as zeros"
[ "$(set_bytes 32 1)" -gt 0 ] || fail "a block that was not discarded reads as zeros"

step "the rest"
blkdiscard "$DEVICE"
wait_until 20 "everything given back" allocated_at_most $((empty + MIB))

step "and the space is used again"
fio --name=again --filename="$DEVICE" --direct=1 --ioengine=libaio --iodepth=4 --rw=randwrite --bs=64k --size=32m \
  --verify=crc32c --verify_fatal=1 --do_verify=1 --output-format=terse >/tmp/fio.again
detach thin
target_stop
