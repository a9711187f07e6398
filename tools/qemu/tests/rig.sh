# Sourced by every test: a target of its own in a folder of its own, and QEMU's programs with the driver.
#
#   RINGWAY   the ringway binary
#   DRIVER    where tools/qemu/build has put the driver and its wrapper
#   QEMU      the folder with QEMU's programs
# A test ends with 0 if what its name says is so; everything it started ends with it.
set -euo pipefail
: "${RINGWAY:?the ringway binary}" "${DRIVER:?the prefix of the driver}" "${QEMU:?the folder of QEMU}"
RINGWAY=$(realpath "$RINGWAY") DRIVER=$(realpath "$DRIVER")
# Below the build's folder, which is on a disk: a pool needs O_DIRECT.
work=$(mktemp -d "$DRIVER/test-XXXXXX")
run=$(mktemp -d /tmp/ringway-qemu-XXXXXX)
export PATH="$QEMU:$DRIVER/bin:$PATH" RINGWAY_RUNTIME_DIR=$run
unset LD_PRELOAD XDG_RUNTIME_DIR
target=
started=()
# Seconds that a step may take.
patience=60
finish() {
  status=$?
  for pid in "${started[@]}" $target; do kill -9 "$pid" 2>/dev/null || true; done
  [ $status = 0 ] || tail -n 5 "$work/log" >&2 2>/dev/null || true
  rm -rf "$work" "$run"
}
trap finish EXIT
cd "$work"

# serve ARGS: starts the target, at the port it had; sets $target, $port and $tcp.
serve() {
  : >"$work/ready"
  "$RINGWAY" serve --die-with-parent --runtime "$run" --crash-log "$run" --listen "tcp://127.0.0.1:${port:-0}" "$@" >"$work/ready" 2>>"$work/log" &
  target=$!
  wait_for "the target is ready" test -s "$work/ready"
  port=$(sed 's/.*"tcp:\/\/127.0.0.1:\([0-9]*\)".*/\1/' "$work/ready")
  tcp=openvstorage+tcp:127.0.0.1:$port
}

stop() {
  kill -9 "$target"
  wait "$target" 2>/dev/null || true
}

wait_for() { # WHAT COMMAND...
  local what=$1
  shift
  for _ in $(seq "${patience}0"); do
    "$@" && return
    sleep 0.1
  done
  echo "not within $patience s: $what" >&2
  return 1
}

ringway() { "$RINGWAY" "$@"; }
with() { timeout 60 ringway-qemu "$@"; }
img() { with qemu-img "$@"; }
# io VOLUME COMMAND...: qemu-io, which reports what went wrong and ends with 0 in some versions.
io() {
  local volume=$1 args=() said
  shift
  for command in "$@"; do args+=(-c "$command"); done
  local format=(-f raw)
  case $volume in json:*) format=() ;; esac
  said=$(with qemu-io "${format[@]}" "${more[@]}" "${args[@]}" "$volume" 2>&1) || { echo "$said" >&2; return 1; }
  ! grep -iE 'fail|error|cannot|not permitted' <<<"$said" >&2
}
more=()

# fails SAYS COMMAND...: it has to fail and to say so.
fails() {
  local says=$1 said
  shift
  if said=$("$@" 2>&1); then
    printf 'it did not fail: %s\n%s\n' "$*" "$said" >&2
    return 1
  fi
  has "$said" "$says"
}

has() { # TEXT PART
  grep -qF -- "$2" <<<"$1" || { printf '%s\nis not in\n%s\n' "$2" "$1" >&2; return 1; }
}

# An image of 16 MiB: noise, a hole from 4 MiB to 8 MiB, noise.
image() {
  head -c 16M /dev/urandom >"$1"
  dd if=/dev/zero of="$1" bs=1M seek=4 count=4 conv=notrunc status=none
}
