#!/bin/bash
# limit: 300
# disk: 1 GiB
# kernels: backports
# target: ringway
#
# What an operation costs the target, counted: a 4 KiB read is one receive, one RDMA write and one send, a larger write one receive, one
# RDMA read and one send, nothing is copied, and under load a doorbell and a completion are for several. And the CPU time of an
# operation beside the kernel's own target, both without a device behind them. Times are those of an emulated machine: compare, no more.
# `cargo xtask bench rdma` prints the tables.
. tests/guest-steps.sh

over_rdma
cp ringway /tmp/ringway
mkdir -p /run/ringway
modprobe nvme-rdma
DISK=null:1GiB
target_start
volume_create cost 256MiB
peer_target cost-peer 1 # its volume is replaced by one without a device
modprobe null_blk nr_devices=1 gb=1 queue_mode=2 irqmode=0
echo 0 >"/sys/kernel/config/nvmet/subsystems/$(nqn_of cost-peer)/namespaces/1/enable"
echo /dev/nullb0 >"/sys/kernel/config/nvmet/subsystems/$(nqn_of cost-peer)/namespaces/1/device_path"
echo 1 >"/sys/kernel/config/nvmet/subsystems/$(nqn_of cost-peer)/namespaces/1/enable"

# busy jiffies of the whole machine, and those of the target's process
machine() { awk '$1 == "cpu" { print $2 + $3 + $4 + $7 + $8 }' /proc/stat; }
process() { sed 's/.*) //' "/proc/$TARGET/stat" | awk '{ print $12 + $13 }'; }
snapshot() { # sets A_* or B_*, by its word
  eval "$1=( $(counted rdma_posted_total 'queue="1"' 'work="receive"') $(counted rdma_posted_total 'queue="1"' 'work="send"') \
    $(counted rdma_posted_total 'queue="1"' 'work="read"') $(counted rdma_posted_total 'queue="1"' 'work="write"') \
    $(counted rdma_doorbells_total 'queue="1"') $(counted rdma_signalled_total 'queue="1"') $(counted reactor_copied_bytes_total) \
    $(counted connection_commands_total 'queue="1"' 'peer="rdma:') )"
}

load() { # SECONDS RW BS DEPTH: fio on $DEVICE; sets OPERATIONS
  fio --name=load --filename="$DEVICE" --direct=1 --ioengine=libaio --iodepth="$4" --rw="$2" --bs="$3" --time_based --runtime="$1" \
    --size=64m --output-format=json >/tmp/fio.json 2>/tmp/fio.err || { cat /tmp/fio.err; fail "fio fails"; }
  OPERATIONS=$(jq '[.jobs[0].read.total_ios, .jobs[0].write.total_ios] | add' /tmp/fio.json)
}

verbs_of() { # RW BS DEPTH MOST: per operation at our target; checks
  local before after each
  snapshot before
  load 2 "$1" "$2" "$3"
  sleep 1 # counters are read off now and then
  snapshot after
  each=$(for n in 0 1 2 3 4 5 6; do echo "$n $((after[n] - before[n])) $((after[7] - before[7]))"; done | awk '{ printf "%.3f ", $2 / $3 }')
  printf '  %-9s %5s %5s | %s\n' "$1" "$2" "$3" "$each"
  # shellcheck disable=SC2086
  set -- "$4" $each
  awk -v want="$1" -v got="${*:2}" 'BEGIN {
    split(want, w, " "); split(got, g, " ")
    for (n = 1; n <= 7; n++) if (w[n] ~ /^</ ? g[n] + 0 > substr(w[n], 2) + 0 : (g[n] < w[n] - 0.01 || g[n] > w[n] + 0.01)) exit 1
  }' || fail "an operation costs something else than ($1): receive, send, read, write, doorbells, signalled, copied bytes"
}

attach cost --nr-io-queues 1
printf '  %-9s %5s %5s | %s\n' operation bytes depth "receives sends reads writes doorbells signalled copied"
verbs_of randread 4k 1 "1 1 0 1 <2.01 <1.01 0"
verbs_of randread 4k 16 "1 1 0 1 <1.9 <0.9 0"
verbs_of randwrite 4k 1 "1 1 0 0 <2.01 <1.01 0"
verbs_of randwrite 64k 1 "1 1 1 0 <3.01 <2.01 0"
verbs_of randwrite 64k 8 "1 1 1 0 <3.01 <2.01 0"

cost() { # NAME RW BS DEPTH
  local m p=0
  m=$(machine)
  [ "$1" != ringway ] || p=$(process)
  load 3 "$2" "$3" "$4"
  m=$((($(machine) - m) * 10000 / OPERATIONS))
  if [ "$1" = ringway ]; then p="$((($(process) - p) * 10000 / OPERATIONS)) us"; else p=-; fi
  printf '  %-9s %5s %5s | %-8s %8s %12s %14s\n' "$2" "$3" "$4" "$1" "$OPERATIONS" "$m us" "$p"
}
printf '  %-9s %5s %5s | %-8s %8s %12s %14s\n' operation bytes depth target done "CPU machine" "CPU process"
for shape in "randread 4k 1" "randread 4k 16" "randwrite 4k 16" "randread 64k 8"; do
  # shellcheck disable=SC2086
  cost ringway $shape
  detach cost >/dev/null
  PORT=$PEER_PORT attach cost-peer --nr-io-queues 1 >/dev/null
  # shellcheck disable=SC2086
  cost nvmet $shape
  detach cost-peer >/dev/null
  attach cost --nr-io-queues 1 >/dev/null
done
detach cost
kill -TERM "$TARGET"
wait "$TARGET" || fail "the target did not end in order after SIGTERM: status $?"
