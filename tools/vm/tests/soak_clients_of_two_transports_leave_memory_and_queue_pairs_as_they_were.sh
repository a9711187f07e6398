#!/bin/bash
# limit: 200
# disk: 4 GiB
# kernels: backports
# target: ringway
#
# Three clients of two transports on one volume: the kernel and our own host over RDMA, and our host over TCP. They come, write, verify and go,
# round after round, for RINGWAY_SOAK_SECONDS (`cargo xtask soak`) or a short form of it. Afterwards the target has the memory,
# the descriptors, the buffers and the queue pairs that it had after the first round.
. tests/guest-steps.sh

SECONDS_MAX=${RINGWAY_SOAK_SECONDS:-30}
CORES=0,1
over_rdma
SERVE+=(--listen tcp://127.0.0.1:4420)
fresh_target soak 96MiB
MIX=write=60,read=30,trim=4,zeroes=3,flush=3
# words of each client: its own part of the volume, whose promises last from round to round
client() { echo --region-start "$((32 * $1))MiB" --region 4MiB --oracle "/tmp/oracle.$1" --mix $MIX --depth 8 --time 5 --sweep acknowledged; }

round() { # [--resume]
  local pids=() pid
  attach soak --nr-io-queues 2
  fio --name=kernel --filename="$DEVICE" --direct=1 --ioengine=libaio --iodepth=8 --rw=randwrite --bsrange=4k-64k --blockalign=4k \
    --offset=64m --size=4m --verify=crc32c --verify_fatal=1 --do_verify=1 --randseed=$RANDOM >/tmp/fio 2>&1 &
  pids+=($!)
  # shellcheck disable=SC2046
  verified rdma "rdma://$ADDRESS:$PORT/soak" --queues 2 $(client 0) "$@" &
  pids+=($!)
  # shellcheck disable=SC2046
  verified tcp tcp://127.0.0.1:4420/soak --queues 2 $(client 1) "$@" &
  pids+=($!)
  for pid in "${pids[@]}"; do wait "$pid" || { cat /tmp/fio; fail "a client fails"; }; done
  grep -q 'err= 0' /tmp/fio
  detach soak
}

# memory that is the target's own (the arenas of buffers are touched in the first rounds), descriptors, buffers in use, queue pairs
resident() { awk '$1 == "VmRSS:" { print $2 }' "/proc/$TARGET/status"; }
descriptors() { find "/proc/$TARGET/fd" -mindepth 1 | wc -l; }
gone() { [ "$(queue_pairs)" = 0 ] && [ "$(counted reactor_buffers_in_use)" = "$BUFFERS" ] && [ "$(descriptors)" -le "$DESCRIPTORS" ]; }

BUFFERS=$(counted reactor_buffers_in_use)
DESCRIPTORS=$(($(descriptors) + 4))
BEGUN=$(date +%s)
round --fresh
wait_until 30 "no queue pair, $BUFFERS buffers and $DESCRIPTORS descriptors" gone
MEMORY=$(resident)
step "after the first round: $MEMORY KiB, $(descriptors) descriptors"
ROUNDS=1
while [ $(($(date +%s) - BEGUN)) -lt "$SECONDS_MAX" ]; do
  round --resume
  ROUNDS=$((ROUNDS + 1))
done
wait_until 30 "no queue pair, $BUFFERS buffers and $DESCRIPTORS descriptors: $(queue_pairs), $(counted reactor_buffers_in_use), $(descriptors)" gone
AFTER=$(resident)
step "after $ROUNDS rounds: $AFTER KiB, $(descriptors) descriptors, no queue pair"
[ "$AFTER" -le $((MEMORY + 16384)) ] || fail "the target has grown from $MEMORY to $AFTER KiB in $ROUNDS rounds"
target_stop
