# Sourced by each test inside the guest: steps that more than one of them takes. The working directory is the shared folder.
#
# A test proves the sentence its name is. It ends at the first command that fails; the trap then says where, and shows what the
# target and the kernel had to say. Which target is attached to is in tests/target: target-ringway.sh or target-kernel.sh has
#   target_format, target_start, target_kill, target_stop, volume_create NAME SIZE [LBA], volume_resize NAME SIZE,
#   volume_shrink_refused NAME SIZE, space_allocated NAME (bytes)
set -euo pipefail

TEST=$(basename "$0" .sh)
TARGET_LOG=/tmp/target.log
# by what, and where, the target is reached; `over_rdma` changes both
TRANSPORT=tcp
ADDRESS=127.0.0.1
PORT=4420
# further words of `ringway serve` and of `nvme connect`
SERVE=()
# the target's reactors, a core each
CORES=0
ATTACH=()
# the pool's disk
DISK=/dev/vdb
read -r WHICH <tests/target || true
. "tests/target-$WHICH.sh"

step() { echo "  [$(cut -d' ' -f1 /proc/uptime)] $*"; }

fail() { echo "  $TEST: $*" >&2; exit 1; }

ended() {
  local status=$?
  if [ $status = 0 ]; then
    echo "PASS $TEST ($WHICH, $(uname -r))"
  else
    echo "---- the target's last words"; tail -n 40 "$TARGET_LOG" 2>/dev/null || true
    echo "---- the kernel's"; dmesg | tail -n 20
    echo "FAIL $TEST ($WHICH, $(uname -r)), status $status, line ${BASH_LINENO[0]}"
  fi
  exit $status
}
trap ended EXIT

# wait_until SECONDS WHAT COMMAND...: retries the command ten times a second
wait_until() {
  local limit=$1 what=$2 until
  shift 2
  until=$(($(date +%s) + limit))
  until "$@"; do
    [ "$(date +%s)" -lt "$until" ] || fail "not within $limit s: $what"
    sleep 0.1
  done
}

nqn_of() { echo "nqn.2026-11.io.ringway:$1"; }

# attach VOLUME [OPTION...]: connects by Linux's own initiator and sets DEVICE. Reconnects every second, for two minutes.
attach() {
  local volume=$1
  shift
  nvme connect --transport $TRANSPORT --traddr $ADDRESS --trsvcid $PORT --nqn "$(nqn_of "$volume")" \
    --reconnect-delay 1 --ctrl-loss-tmo 120 "${ATTACH[@]}" "$@" >/dev/null
  wait_until 20 "a block device of $volume" find_device "$volume"
  step "attached $volume as $DEVICE"
}

# the block device of a volume, by the subsystem it belongs to
find_device() {
  local subsystem
  for subsystem in /sys/class/nvme-subsystem/*; do
    if [ "$(cat "$subsystem/subsysnqn" 2>/dev/null)" = "$(nqn_of "$1")" ]; then
      DEVICE=$(find "$subsystem/" -maxdepth 1 -name 'nvme*n1' -printf '/dev/%f\n' | head -n 1)
      [ -b "$DEVICE" ] && return 0
    fi
  done
  return 1
}

detach() {
  nvme disconnect --nqn "$(nqn_of "$1")" >/dev/null
  step "detached $1"
}

# how the kernel sees the connection: live, connecting, resetting, deleting
controller_state() { cat /sys/class/nvme/nvme*/state 2>/dev/null | head -n 1; }
controller_is() { [ "$(controller_state)" = "$1" ]; }
controller_lost() { ! controller_is live; }

# over_rdma: everything after this goes by soft RoCE, between two interfaces that are joined by a wire: the target is at rd0, the kernel
# comes from rd1. Both are this machine's, so the kernel has to be talked out of its short cut: packets from the one address to the other
# leave by the interface that has it, and only what arrives at an interface is looked up among our own addresses.
over_rdma() {
  local name key
  TRANSPORT=rdma
  ADDRESS=10.0.0.1
  # not a loopback address: any host may come
  SERVE=(--insecure)
  ATTACH=(--host-traddr 10.0.0.2)
  modprobe -a rdma_rxe rdma_ucm veth
  ip link add rd0 type veth peer name rd1
  ip addr add 10.0.0.1/24 dev rd0
  ip addr add 10.0.0.2/24 dev rd1
  for name in all rd0 rd1; do
    for key in accept_local=1 rp_filter=0 arp_ignore=1 arp_announce=2; do sysctl -qw "net.ipv4.conf.$name.$key"; done
  done
  ip link set rd0 up mtu 4200
  ip link set rd1 up mtu 4200
  rdma_routes
  ip rule add pref 10 iif rd0 lookup local
  ip rule add pref 11 iif rd1 lookup local
  ip rule add pref 20 from 10.0.0.1 to 10.0.0.2 lookup 100
  ip rule add pref 21 from 10.0.0.2 to 10.0.0.1 lookup 101
  ip rule add pref 22 oif rd0 lookup 100
  ip rule add pref 23 oif rd1 lookup 101
  ip rule add pref 100 lookup local
  ip rule del pref 0
  rdma_link_add
  rdma link add rxe1 type rxe netdev rd1
  ibv_devinfo -d rxe0 | grep -q PORT_ACTIVE || fail "soft RoCE has no active port"
}
# these go when an interface goes down
rdma_routes() {
  ip route replace 10.0.0.2 dev rd0 src 10.0.0.1 table 100
  ip route replace 10.0.0.1 dev rd1 src 10.0.0.2 table 101
}
rdma_link_add() { rdma link add rxe0 type rxe netdev rd0; }
# queue pairs of connections: on the target's card, unless another is named
queue_pairs() { rdma resource show qp link "${1:-rxe0}" | grep -c ' type RC ' || true; }

# verified NAME WORD...: `ringway bench` with these words, which has to find every block as it was promised
verified() {
  local name=$1
  shift
  ringway bench "$@" --verify --json >"/tmp/$name.json" 2>"/tmp/$name.err" || { cat "/tmp/$name.json" "/tmp/$name.err"; fail "bench: $name"; }
  step "$name: $(jq -r '"\([.operations[].operations] | add // 0) operations, \(.verify.units_checked) blocks verified"' "/tmp/$name.json")"
}

# engine TRANSPORT VOLUME WORD...: stock fio with our engine, in one process with its job
engine() {
  local over=$1 volume=$2 way=()
  shift 2
  case $over in
    shm) way=(--runtime_dir=/run/ringway) ;;
    tcp) way=(--host=127.0.0.1 --port=4420) ;;
    rdma) way=("--host=$ADDRESS" "--port=${RDMA_PORT:-$PORT}") ;;
  esac
  [ -e /tmp/libringway-fio.so ] || cp libringway-fio.so /tmp/
  timeout 120 fio --ioengine=external:/tmp/libringway-fio.so --transport="$over" "${way[@]}" --volume="$volume" --name=engine --thread \
    --group_reporting --verify_fatal=1 --verify_dump=0 "$@" >/tmp/fio.engine 2>&1 || { cat /tmp/fio.engine; fail "fio over $over: $*"; }
  grep -q 'err= 0' /tmp/fio.engine
}

# peer_target VOLUME SIZE_MIB: the kernel's own target beside ours, over RDMA at port $PEER_PORT, with a volume of this name in memory
PEER_PORT=4421
peer_target() {
  local root=/sys/kernel/config/nvmet subsystem
  modprobe -a nvmet nvmet-rdma
  modprobe brd rd_nr=1 rd_size=$(($2 << 10))
  grep -q ' /sys/kernel/config ' /proc/mounts || mount -t configfs none /sys/kernel/config
  subsystem=$root/subsystems/$(nqn_of "$1")
  mkdir -p "$subsystem/namespaces/1" $root/ports/1
  echo 1 >"$subsystem/attr_allow_any_host"
  echo /dev/ram0 >"$subsystem/namespaces/1/device_path"
  echo 1 >"$subsystem/namespaces/1/enable"
  echo ipv4 >$root/ports/1/addr_adrfam
  echo rdma >$root/ports/1/addr_trtype
  echo $ADDRESS >$root/ports/1/addr_traddr
  echo $PEER_PORT >$root/ports/1/addr_trsvcid
  ln -s "$subsystem" $root/ports/1/subsystems/
}

fresh_target() { # VOLUME SIZE [LBA]: formats the pool's disk, starts the target, creates one volume
  modprobe nvme-$TRANSPORT
  target_format
  target_start
  volume_create "$@"
}

# ask WORD...: has the host do something, for tests with a `# host:` line; prints what it said
ASKED=0
ask() {
  local limit=$(($(date +%s) + 60)) status
  # a subshell cannot count for its parent: the numbers are those of the files
  while [ -e "ask.$((ASKED + 1))" ]; do ASKED=$((ASKED + 1)); done
  ASKED=$((ASKED + 1))
  echo "$@" >ask.new
  mv ask.new "ask.$ASKED"
  until [ -e "answer.$ASKED" ]; do
    [ "$(date +%s)" -lt $limit ] || fail "the host does not answer: $*"
    sleep 0.1
  done
  read -r status <"answer.$ASKED"
  cat "said.$ASKED"
  [ "$status" = 0 ] || fail "the host could not $*"
}
