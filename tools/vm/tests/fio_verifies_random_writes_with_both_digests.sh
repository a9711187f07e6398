#!/bin/bash
# limit: 300
# disk: 4 GiB
# kernels: backports bookworm
#
# Random writes of mixed sizes, so that data travels inside the capsule as well as after R2T, and writes below 4 KiB beside
# them, each block verified; header and data digests guard every PDU.
. tests/guest-steps.sh

fresh_target random 1GiB
attach random --hdr-digest --data-digest --nr-io-queues 2
[ "$(cat /sys/class/nvme/nvme*/transport)" = tcp ]

step "4 to 64 KiB at depth 16"
fio --name=mixed --filename="$DEVICE" --direct=1 --ioengine=libaio --iodepth=16 --rw=randwrite --size=48m \
  --bssplit=4k/50:16k/30:64k/20 --verify=crc32c --verify_fatal=1 --do_verify=1 --randseed=$RANDOM --output-format=terse >/tmp/fio.mixed

if [ "$WHICH" = ringway ]; then
  [ "$(blockdev --getss "$DEVICE")" = 512 ]
  step "512 bytes at depth 8, eight to a block"
  fio --name=small --filename="$DEVICE" --direct=1 --ioengine=libaio --iodepth=8 --rw=randwrite --offset=64m --size=1m \
    --bs=512 --verify=crc32c --verify_fatal=1 --do_verify=1 --randseed=$RANDOM --output-format=terse >/tmp/fio.small
fi

step "overwrites in place, flushed every 16"
fio --name=again --filename="$DEVICE" --direct=1 --ioengine=libaio --iodepth=16 --rw=randwrite --size=16m --bs=4k --fsync=16 \
  --verify=crc32c --verify_fatal=1 --do_verify=1 --randseed=$RANDOM --output-format=terse >/tmp/fio.again

dmesg | grep -i 'digest.*error' && fail "the kernel saw a digest error"
controller_is live || fail "the controller is $(controller_state)"
detach random
target_stop
