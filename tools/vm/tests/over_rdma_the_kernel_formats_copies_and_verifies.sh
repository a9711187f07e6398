#!/bin/bash
# limit: 600
# disk: 4 GiB
# kernels: backports
#
# Linux's nvme-rdma discovers the target, which has two reactors, connects with several queues, puts a file system on the volume, copies,
# verifies and discards; it disconnects under load; and a hundred connects and disconnects leave no queue pair behind.
. tests/guest-steps.sh

CORES=0,1
over_rdma
fresh_target roce 1GiB
BEFORE=$(queue_pairs)

timeout 60 nvme discover --transport rdma --traddr $ADDRESS --trsvcid $PORT "${ATTACH[@]}" >/tmp/discovered || fail "discovery fails"
grep -q "$(nqn_of roce)" /tmp/discovered || { cat /tmp/discovered; fail "discovery does not list the volume"; }
grep -q 'trtype: *rdma' /tmp/discovered || { cat /tmp/discovered; fail "discovery does not say rdma"; }
step "discovered"

attach roce --nr-io-queues 2
mkfs.ext4 -q "$DEVICE"
mkdir -p /tmp/m
mount "$DEVICE" /tmp/m
dd if=/dev/urandom of=/tmp/original bs=64k count=256 status=none
cp /tmp/original /tmp/m/copy
umount /tmp/m
detach roce
attach roce --nr-io-queues 2
mount "$DEVICE" /tmp/m
cmp /tmp/original /tmp/m/copy || fail "the copy differs"
umount /tmp/m
step "a file system and its file are whole after a reconnect"

fio --name=verify --filename="$DEVICE" --direct=1 --ioengine=libaio --iodepth=16 --numjobs=2 --offset_increment=64m --size=48m \
  --rw=randwrite --bsrange=4k-256k --bs_unaligned=0 --blockalign=4k --verify=crc32c --verify_fatal=1 --do_verify=1 \
  --group_reporting >/tmp/fio 2>&1 || { cat /tmp/fio; fail "fio verifies badly"; }
grep -q 'err= 0' /tmp/fio
step "fio verified two jobs of all sizes"

blkdiscard "$DEVICE"
cmp -n $((64 << 20)) "$DEVICE" /dev/zero || fail "what was discarded is not zero"
step "discarded, and it reads as zeros"

fio --name=load --filename="$DEVICE" --direct=1 --ioengine=libaio --iodepth=32 --rw=randrw --bs=4k --time_based --runtime=60 \
  --size=256m >/tmp/fio.load 2>&1 &
FIO=$!
sleep 3
detach roce
wait $FIO || true # its device went away under it
ringway pool show --json --control "${CONTROL:-}" >/dev/null 2>&1 || [ "$WHICH" = kernel ] || fail "the target does not answer"
step "disconnected under load"

for round in $(seq 100); do
  nvme connect --transport rdma --traddr $ADDRESS --trsvcid $PORT "${ATTACH[@]}" --nqn "$(nqn_of roce)" --nr-io-queues 1 >/dev/null ||
    fail "connect $round fails"
  nvme disconnect --nqn "$(nqn_of roce)" >/dev/null || fail "disconnect $round fails"
done
step "a hundred connects and disconnects"
no_more_queue_pairs() { [ "$(queue_pairs)" -le "$BEFORE" ]; }
wait_until 30 "as many queue pairs as before ($BEFORE)" no_more_queue_pairs

attach roce
fio --name=after --filename="$DEVICE" --direct=1 --ioengine=libaio --iodepth=8 --rw=randwrite --bs=4k --size=4m --verify=crc32c \
  --verify_fatal=1 >/tmp/fio 2>&1 || { cat /tmp/fio; fail "fio fails afterwards"; }
detach roce
target_stop
