#!/bin/bash
# limit: 500
# disk: 4 GiB
# kernels: backports
# target: ringway
#
# The target starts on a machine without an RDMA device, serves by TCP, and serves by RDMA as soon as there is one; discovery says so. Its
# device is deleted under load, while nobody is connected, and when it is the machine's last: the deletion ends at once each time,
# the control interface and TCP go on, and when the device is back so is the kernel, without an error. So it is when the link goes
# down and comes back.
. tests/guest-steps.sh

over_rdma
SERVE+=(--listen tcp://127.0.0.1:4420)
rdma link delete rxe0
rdma link delete rxe1
modprobe nvme-tcp
fresh_target late 256MiB
grep -q 'no RDMA device' $TARGET_LOG || fail "the target does not say that there is no device"

listed() { timeout 20 nvme discover --transport tcp --traddr 127.0.0.1 --trsvcid 4420 2>/dev/null | grep -q "trtype: *rdma"; }
not_listed() { ! listed; }
not_listed || fail "discovery lists RDMA where there is none"
goes_on() { # WHAT: control answers, and a client over TCP reads and writes
  timeout 10 /tmp/ringway pool show --json --control $CONTROL >/dev/null || fail "$1: the control interface does not answer"
  verified "tcp-beside" tcp://127.0.0.1:4420/late --region-start 128MiB --region 1MiB --mix write=50,read=50 --depth 4 --operations 100
}
goes_on "without a device"

rdma link add rxe1 type rxe netdev rd1
sleep 2
rdma_link_add
wait_until 20 "discovery lists RDMA" listed
step "a device came: RDMA is served, and discovery says so"

load() { # NAME SIZE: starts fio on the kernel's device
  fio --name="$1" --filename="$DEVICE" --direct=1 --ioengine=libaio --iodepth=8 --rw=randwrite --bs=4k --size="$2" --rate_iops=,150 \
    --verify=crc32c --verify_fatal=1 --do_verify=1 --randseed=$RANDOM >"/tmp/fio.$1" 2>&1 &
  FIO=$!
  sleep 3
}
verified_load() {
  wait $FIO || { cat "/tmp/fio.$1"; fail "fio fails: $1"; }
  grep -q 'err= 0' "/tmp/fio.$1"
}
deleted() { # LINK WHAT: the deletion is not held up by the target
  local begun
  begun=$(date +%s%N)
  timeout 30 rdma link delete "$1" || fail "$2: the device cannot be deleted"
  step "$2: deleted in $((($(date +%s%N) - begun) / 1000000)) ms"
}

attach late --nr-io-queues 2 --keep-alive-tmo 5
load deleted 4m
deleted rxe0 "under load"
goes_on "without its device, under load"
wait_until 20 "discovery lists RDMA no more" not_listed
wait_until 30 "the kernel notices" controller_lost
rdma_link_add
wait_until 60 "the kernel reconnects" controller_is live
step "the device is back, and so is the kernel"
verified_load deleted 4m

# The interface goes down under load, and comes back: for a moment, and for longer than anybody waits. If soft RoCE sends a farewell
# meanwhile this breaks its own queue pair for connections for good, whoever uses it: then the device is made anew.
link_down() { # SECONDS
  ip link set rd0 down
  sleep "$1"
  goes_on "with its link down for $1 s"
  ip link set rd0 up
  rdma_routes
}
is_broken() { rdma resource show qp link "$1" | grep -q 'lqpn 1 .*state ERR'; }
load down 5m
link_down 1
sleep 2
link_down 9
sleep 2
if is_broken rxe1; then
  # It is the kernel's own: its controller goes with the device, whatever our target does.
  step "soft RoCE at the kernel's end did not survive: it connects no more"
  nvme disconnect --nqn "$(nqn_of late)" >/dev/null || true
  wait $FIO || true
  rdma link delete rxe1
  rdma link add rxe1 type rxe netdev rd1
fi
if is_broken rxe0; then
  step "soft RoCE at the target's end did not survive: it is made anew"
  deleted rxe0 "with a broken queue pair for connections"
  rdma_link_add
  wait_until 20 "discovery lists RDMA" listed
fi
if find_device late; then
  wait_until 90 "the kernel reconnects" controller_is live
  step "the link is back, and so is the kernel"
  verified_load down
else
  attach late --nr-io-queues 2
  load anew 1m
  verified_load anew
fi
detach late

deleted rxe0 "with nobody connected"
wait_until 20 "discovery lists RDMA no more" not_listed
goes_on "without its device"
rdma_link_add
wait_until 20 "discovery lists RDMA" listed

# the last one of the machine
deleted rxe1 "beside it"
verified ours rdma://$ADDRESS:$PORT/late --region 4MiB --mix write=50,read=50 --depth 8 --operations 200
deleted rxe0 "the last device"
goes_on "without any device"
rdma_link_add
rdma link add rxe1 type rxe netdev rd1
wait_until 20 "discovery lists RDMA" listed
attach late --nr-io-queues 2
cmp -n 4096 "$DEVICE" "$DEVICE"
verified ours rdma://$ADDRESS:$PORT/late --region 4MiB --mix write=50,read=50 --depth 8 --operations 200
detach late
target_stop
