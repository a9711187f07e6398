#!/bin/bash
# limit: 200
# disk: 1 GiB
# kernels: backports
#
# Messages, RDMA reads and writes of our own over soft RoCE, by two sides that sleep on their bells; a connection to nobody, and a read
# of memory that was not lent. Everything comes back and no buffer leaks, which the program itself checks.
. tests/guest-steps.sh

over_rdma
cp verbs-ping /tmp/verbs-ping
rping -s -a $ADDRESS -C 3 -v >/tmp/rping 2>&1 &
sleep 1
timeout 30 rping -c -a $ADDRESS -I 10.0.0.2 -C 3 -v >/dev/null || { cat /tmp/rping; fail "rping fails: it is not ours that is broken"; }
step "rping gets through"

timeout 120 /tmp/verbs-ping $ADDRESS:$PORT 100 || fail "verbs-ping: status $?"
step "100 rounds of 64 KiB each way"

# What is said where something is missing: each time a sentence that says what to do.
says() { # WORDS COMMAND...
  local words=$1
  shift
  if timeout 30 "$@" >/tmp/said 2>&1; then fail "no error where there should be: $words"; fi
  grep -q "$words" /tmp/said || { cat /tmp/said; fail "not said: $words"; }
  step "said: $(tail -n 1 /tmp/said)"
}
says "limit on locked memory" setpriv --reuid 65534 --clear-groups prlimit --memlock=65536:65536 /tmp/verbs-ping $ADDRESS:$PORT 1
rdma link delete rxe0
rdma link delete rxe1
says "no RDMA device" /tmp/verbs-ping $ADDRESS:$PORT 1
