#!/bin/bash
# limit: 500
# disk: 4 GiB
# kernels: backports
# target: ringway
#
# Our own host over real verbs, with `ringway bench` and with stock fio and our engine: against our target on two reactors, and beside the
# kernel's initiator. Clients over RDMA, TCP and shared memory write to one volume at once while snapshots are cut, and find its blocks
# as they were left.
. tests/guest-steps.sh

CORES=0,1
over_rdma
SERVE+=(--listen tcp://127.0.0.1:4420)
fresh_target shared 64MiB
OURS=rdma://$ADDRESS:$PORT/shared
BEFORE=$(queue_pairs)
MIX=write=60,read=30,trim=4,zeroes=3,flush=3
region() { echo --region-start "$((16 * $1))MiB" --region 8MiB --oracle "/tmp/oracle.$1"; }

# shellcheck disable=SC2046 # words
filled() { verified "$1" "$2" --runtime /run/ringway $(region "$3") --mix write --pattern seq --depth 16 --operations 2048 --fresh; }
# shellcheck disable=SC2046
{
  filled fill $OURS 0
  verified alone $OURS $(region 0) --resume --mix $MIX --depth 16 --queues 2 --operations 1500 --sweep acknowledged
}
verified sizes $OURS --region-start 32MiB --region 8MiB --block 256KiB --mix write=50,read=50 --depth 8 --operations 200 --fresh

# several reactors: queues spread evenly, and half of what they ask for lies on the other's shards
ringway bench $OURS --queues 4 --depth 8 --mix read --time 6 --json >/tmp/spread.json 2>/tmp/spread.err &
BENCH=$!
io_queues() { ringway metrics --control $CONTROL | grep '^ringway_rdma_credits{' | grep -v 'queue="0"' >/tmp/queues; }
four_queues() { io_queues && [ "$(wc -l </tmp/queues)" = 4 ]; }
wait_until 20 "four queues" four_queues
for reactor in 0 1; do
  [ "$(grep -c "reactor=\"$reactor\"" /tmp/queues)" = 2 ] || { cat /tmp/queues; fail "four queues on two reactors are not two each"; }
done
sleep 2
[ "$(counted volume_hops_total 'volume="shared"')" -gt 100 ] || fail "nothing crossed from one reactor to the other"
wait $BENCH || { cat /tmp/spread.*; fail "the load on four queues fails"; }
step "four queues are two on each reactor; $(counted volume_hops_total 'volume="shared"') parts crossed"

# stock fio with our engine
engine rdma shared --rw=randrw --bsrange=4k-64k --blockalign=4k --offset=32m --size=8m --iodepth=16 --queues=2 --verify=crc32c --randseed=1
step "fio with our engine over RDMA: $(grep -o 'WRITE:.*' /tmp/fio.engine)"

# all at once on one volume, the kernel among them, and snapshots meanwhile
filled fill-tcp tcp://127.0.0.1:4420/shared 1
filled fill-shm shm:shared 2
attach shared --nr-io-queues 2
fio --name=kernel --filename="$DEVICE" --direct=1 --ioengine=libaio --iodepth=8 --rw=randwrite --bs=4k --offset=48m --size=4m \
  --verify=crc32c --verify_fatal=1 --do_verify=1 --randseed=2 >/tmp/fio.kernel 2>&1 &
KERNEL=$!
# shellcheck disable=SC2046
{
  verified rdma $OURS $(region 0) --resume --mix $MIX --depth 8 --queues 2 --operations 600 &
  RDMA=$!
  verified tcp tcp://127.0.0.1:4420/shared $(region 1) --resume --mix $MIX --depth 8 --operations 600 &
  TCP=$!
  verified shm shm:shared --runtime /run/ringway $(region 2) --resume --mix write=70,read=30 --depth 8 --operations 600 &
  SHM=$!
}
for cut in 1 2 3; do
  ringway snapshot create shared "s$cut" --timeout 60s --control $CONTROL >/dev/null
  step "snapshot s$cut under load"
done
for client in $RDMA $TCP $SHM; do wait "$client" || fail "a client beside the others fails"; done
wait $KERNEL || { cat /tmp/fio.kernel; fail "the kernel's fio fails"; }
grep -q 'err= 0' /tmp/fio.kernel
step "the kernel, our host over RDMA and over TCP and a ring wrote at once"

swept() { # URL REGION: each block of it is what was promised to whoever wrote it
  # shellcheck disable=SC2046
  verified "${1%%:*}-$2" "$1" --runtime /run/ringway $(region "$2") --resume --time 0 --sweep acknowledged
  [ "$(jq .verify.units_swept "/tmp/${1%%:*}-$2.json")" = 2048 ] || fail "not every block was looked at"
}
for own in 0 1; do
  swept $OURS $own
  swept tcp://127.0.0.1:4420/shared $own
done
# what a ring writes carries the volume's name, not its UUID: read here by itself, and by all as fio's blocks
swept shm:shared 2
engine shm shared --rw=randwrite --bs=4k --offset=52m --size=4m --iodepth=8 --verify=crc32c --do_verify=0
for over in rdma tcp shm; do
  engine $over shared --rw=read --bs=4k --offset=48m --size=8m --iodepth=8 --verify=crc32c
done
ringway volume export shared /tmp/by-tcp --control $CONTROL >/dev/null
cmp -n $((64 << 20)) /tmp/by-tcp "$DEVICE" || fail "what the kernel reads over RDMA is not what our host reads over TCP"
rm /tmp/by-tcp
step "every block is the same over RDMA, TCP and shared memory"
detach shared

as_before() { [ "$(queue_pairs)" -le "$BEFORE" ]; }
wait_until 30 "as many queue pairs as before ($BEFORE)" as_before
target_stop
