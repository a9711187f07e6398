#!/bin/bash
# limit: 300
# disk: 4 GiB
# kernels: backports
#
# The target is killed three times while fio writes over RDMA. The kernel keeps what was not answered and sends it again; what was
# answered has to be there: fio verifies every block at the end and sees no error in between.
. tests/guest-steps.sh

over_rdma
fresh_target killed 1GiB
attach killed --keep-alive-tmo 5 --nr-io-queues 2

fio --name=killed --filename="$DEVICE" --direct=1 --ioengine=libaio --iodepth=16 --rw=randwrite --bs=4k --size=24m \
  --rate_iops=200 --verify=crc32c --verify_fatal=1 --do_verify=1 --randseed=$RANDOM >/tmp/fio.killed 2>&1 &
FIO=$!

for round in 1 2 3; do
  sleep 4
  kill -0 $FIO 2>/dev/null || fail "fio ended before round $round: $(tail -n 5 /tmp/fio.killed)"
  target_kill
  step "round $round: killed; the kernel says $(controller_state)"
  wait_until 30 "the kernel notices" controller_lost
  target_start
  wait_until 60 "the kernel reconnects" controller_is live
  step "round $round: reconnected"
done

wait $FIO || { cat /tmp/fio.killed; fail "fio failed"; }
grep -E 'err=|WRITE:|READ:' /tmp/fio.killed
grep -q 'err= 0' /tmp/fio.killed
detach killed
target_stop
