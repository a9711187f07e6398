#!/bin/bash
# limit: 120
# disk: 2 GiB
# kernels: backports
#
# Linux sends control requests as vendor-specific commands over the connection by which it has a volume, and no other way is open to it:
# a snapshot is made, a mistake is answered as on the control socket, and a host that is not named finds no such command.
. tests/guest-steps.sh

if [ "$WHICH" = kernel ]; then
  step "the kernel's target has no such commands"
  exit 0
fi
HOST=$(cat /etc/nvme/hostnqn)
SERVE=(--control-host "$HOST")
fresh_target vm1 64MiB
attach vm1
CONTROLLER=${DEVICE%n1}

send() { # JSON: prints the ticket, in hexadecimal
  printf '%s' "$1" >/tmp/request
  # whole blocks, as they come from the page cache; what is behind the JSON is zeros
  truncate -s %512 /tmp/request
  local bytes
  bytes=$(stat -c %s /tmp/request)
  nvme admin-passthru "$CONTROLLER" --opcode=0xc1 --write --data-len="$bytes" --cdw10="$bytes" --input-file=/tmp/request 2>&1 |
    tee /tmp/sent | grep -oE '(0x)?[0-9a-f]+$' | head -n 1
}

# fetch TICKET: true once there is a reply; it is in /tmp/reply then, its status in STATUS
fetch() {
  nvme admin-passthru "$CONTROLLER" --opcode=0xc2 --read --data-len=8192 --cdw10="$1" --raw-binary >/tmp/raw 2>/tmp/fetched || { cat /tmp/fetched; fail "no reply to $1"; }
  STATUS=$(od -An -tu4 -j0 -N4 /tmp/raw | tr -d ' ')
  [ "$STATUS" != 0 ] || return 1
  tail -c +17 /tmp/raw | head -c "$(od -An -tu4 -j4 -N4 /tmp/raw | tr -d ' ')" >/tmp/reply
}

step "a snapshot over the volume's own connection"
TICKET=$(send '{"method": "POST", "path": "/v1/snapshots", "body": {"volumes": ["vm1"], "name": "s", "timeout_ms": 60000}}')
cat /tmp/sent
wait_until 60 "the reply to $TICKET" fetch "$TICKET"
[ "$STATUS" = 201 ] && jq -e '.[0].name == "vm1@s"' /tmp/reply >/dev/null || { cat /tmp/reply; fail "status $STATUS"; }
ringway snapshot list vm1 --json --control $CONTROL | jq -e 'length == 1' >/dev/null || fail "there is no snapshot"

step "a mistake is answered as on the socket"
TICKET=$(send '{"method": "GET", "path": "/v1/volumes/vm9"}')
wait_until 20 "the reply to $TICKET" fetch "$TICKET"
[ "$STATUS" = 404 ] && jq -e '.error.kind == "not_found"' /tmp/reply >/dev/null || { cat /tmp/reply; fail "status $STATUS"; }
detach vm1

step "a host that is not named finds no such command"
attach vm1 --hostnqn nqn.2014-08.org.nvmexpress:uuid:99999999-2222-4333-8444-999999999999 --hostid 99999999-2222-4333-8444-999999999999
CONTROLLER=${DEVICE%n1}
send '{"method": "GET", "path": "/v1/volumes"}' >/dev/null || true
grep -qi "invalid.*opcode" /tmp/sent || { cat /tmp/sent; fail "the command was not refused"; }
nvme disconnect --nqn "$(nqn_of vm1)" >/dev/null
target_stop
