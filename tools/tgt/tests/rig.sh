# Sourced by every test: a tgtd with the backing store in it, and a target of Ringway, in a network and below mounts of the test's own.
#
#   RINGWAY   the ringway binary
#   MODULE    bs_openvstorage.so
#   LIBRARY   the folder with libovsvolumedriver.so.1
# A test ends with 0 if what its name says is so; everything it started ends with it.
set -euo pipefail
: "${RINGWAY:?the ringway binary}" "${MODULE:?bs_openvstorage.so}" "${LIBRARY:?the folder with libovsvolumedriver.so.1}"
RINGWAY=$(realpath "$RINGWAY") MODULE=$(realpath "$MODULE") LIBRARY=$(realpath "$LIBRARY")
tests=$(cd "$(dirname "$0")" && pwd)
export PYTHONPATH=$tests PYTHONDONTWRITEBYTECODE=1
case $(ip -o link) in *$'\n'*) echo "not in a network of its own: run me by cargo xtask tgt" >&2; exit 1 ;; esac

work=$(mktemp -d "$(dirname "$MODULE")/test-XXXXXX")
target='' daemon=''
finish() {
  status=$?
  [ $status = 0 ] || tail -n 20 "$work"/*.log >&2 || true
  [ -z "$daemon" ] || kill -9 "$daemon" 2>/dev/null || true
  [ -z "$target" ] || kill -9 "$target" 2>/dev/null || true
  wait 2>/dev/null || true
  rm -rf "$work"
}
trap finish EXIT

ip link set lo up
mount -t tmpfs -o mode=755 ringway-test /run
# The folder that Debian's tgtd has compiled in. What is on the machine stays as it is.
made=''
[ -d /usr/lib/tgt ] || { mkdir /usr/lib/tgt; made=yes; }
mount -t tmpfs -o mode=755 ringway-test /usr/lib/tgt
mkdir /usr/lib/tgt/backing-store
cp "$MODULE" /usr/lib/tgt/backing-store/
export LD_LIBRARY_PATH=$LIBRARY
cd "$work"

# ringway WORD...
ringway() { "$RINGWAY" "$@"; }

# wait_until SECONDS COMMAND...
wait_until() {
  local until=$(($(date +%s) + $1))
  shift
  until "$@" >/dev/null 2>&1; do
    [ "$(date +%s)" -lt $until ] || { echo "never: $*" >&2; return 1; }
    sleep 0.05
  done
}

# serve WORD...: starts the target at the ports of the manual's examples.
serve() {
  "$RINGWAY" serve --listen tcp://127.0.0.1:21321 --listen tcp://127.0.0.1:12345 "$@" >>"$work/ready" 2>>"$work/ringway.log" &
  target=$!
  wait_until 60 "$RINGWAY" pool show
}
kill_target() {
  kill -9 "$target"
  wait "$target" 2>/dev/null || true
  target=
}

# start_tgtd: with a target that takes any initiator.
start_tgtd() {
  mkdir -p /run/tgtd
  tgtd --foreground >>"$work/tgtd.log" 2>&1 &
  daemon=$!
  wait_until 30 tgtadm --lld iscsi --mode sys --op show
  tgtadm --lld iscsi --mode target --op new --tid 1 --targetname iqn.2016-01.com.openvstorage:for.all
  tgtadm --lld iscsi --mode target --op bind --tid 1 -I ALL
}
unit_new() { # LUN BSTYPE PATH [WORD...]
  local lun=$1 bstype=$2 path=$3
  shift 3
  tgtadm --lld iscsi --op new --bstype "$bstype" --mode logicalunit --tid 1 --lun "$lun" -b "$path" "$@"
}
unit_delete() { tgtadm --lld iscsi --op delete --mode logicalunit --tid 1 --lun "$1"; }
# The end that an administrator gives it: everything was closed, and it ends by itself.
stop_tgtd() {
  tgtadm --lld iscsi --mode target --op delete --force --tid 1
  tgtadm --mode sys --op delete
  wait "$daemon" || { echo "tgtd ended with $?" >&2; return 1; }
  daemon=
}
# refused SAYS LUN BSTYPE PATH [WORD...]: no unit is made, and tgtd's log says why.
refused() {
  local says=$1
  shift
  : >"$work/tgtd.log"
  if unit_new "$@" 2>/dev/null; then echo "not refused: $*" >&2; return 1; fi
  grep -qF -- "$says" "$work/tgtd.log" || { echo "\"$says\" is not said of: $*" >&2; return 1; }
}
