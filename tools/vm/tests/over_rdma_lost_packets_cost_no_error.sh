#!/bin/bash
# limit: 200
# disk: 2 GiB
# kernels: backports
#
# One packet in a hundred is lost in each direction: RDMA sends again, connections may break and come back, and fio verifies every block
# and sees no error.
. tests/guest-steps.sh

modprobe sch_netem
over_rdma
fresh_target lossy 1GiB
attach lossy --nr-io-queues 2 --keep-alive-tmo 5

load() { # NAME
  fio --name="$1" --filename="$DEVICE" --direct=1 --ioengine=libaio --iodepth=8 --rw=randwrite --bsrange=4k-64k --blockalign=4k \
    --size=8m --verify=crc32c --verify_fatal=1 --do_verify=1 --randseed=$RANDOM >/tmp/fio 2>&1 || { cat /tmp/fio; fail "fio fails: $1"; }
  grep -q 'err= 0' /tmp/fio
}
counter() { cat "/sys/class/infiniband/$1/ports/1/hw_counters/$2"; }

for dev in rd0 rd1; do tc qdisc add dev $dev root netem loss 1%; done
load loss
for dev in rd0 rd1; do tc -s qdisc show dev $dev | grep -o 'dropped [0-9]*'; done >/tmp/dropped
grep -q 'dropped [1-9]' /tmp/dropped || fail "nothing was lost: the load does not go over the wire"
step "1 % lost: $(tr '\n' ' ' </tmp/dropped), sent again $(counter rxe0 completer_retry_err) and $(counter rxe1 completer_retry_err) times"

for dev in rd0 rd1; do tc qdisc del dev $dev root; done

load clean
detach lossy
target_stop
