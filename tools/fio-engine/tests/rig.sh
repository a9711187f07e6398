# Sourced by every test: a target of its own in a folder of its own, and fio with the engine.
#
#   RINGWAY   the ringway binary
#   ENGINE    libringway-fio.so
# A test ends with 0 if what its name says is so; everything it started ends with it.
set -euo pipefail
: "${RINGWAY:?the ringway binary}" "${ENGINE:?libringway-fio.so}"
RINGWAY=$(realpath "$RINGWAY") ENGINE=$(realpath "$ENGINE")
# Below the build's folder, which is on a disk: a pool needs O_DIRECT.
work=$(mktemp -d "$(dirname "$ENGINE")/fio-XXXXXX")
run=$(mktemp -d /tmp/ringway-fio-XXXXXX)
target=
finish() {
  [ -z "$target" ] || kill -9 "$target" 2>/dev/null || true
  rm -rf "$work" "$run"
}
trap finish EXIT

# fio leaves files where it runs.
cd "$work"

# serve ARGS: starts the target, sets $target and $port.
serve() {
  "$RINGWAY" serve --runtime "$run" --listen "tcp://127.0.0.1:${port:-0}" "$@" >"$work/ready" 2>>"$work/log" &
  target=$!
  for _ in $(seq 600); do
    [ -s "$work/ready" ] && break
    kill -0 "$target" 2>/dev/null || { cat "$work/log" >&2; return 1; }
    sleep 0.1
  done
  port=$(sed 's/.*"tcp:\/\/127.0.0.1:\([0-9]*\)".*/\1/' "$work/ready")
}

ringway() { "$RINGWAY" "$@" --runtime "$run"; }

# engine ARGS: fio over TCP, or whatever $over says.
over=
engine() {
  local way=(--host=127.0.0.1 --port="${port:-1}")
  [ "$over" != shm ] || way=(--runtime_dir="$run")
  timeout 120 fio --ioengine="external:$ENGINE" "${way[@]}" --name=job --thread --group_reporting "$@"
}

# fails SAYS ARGS: fio has to fail and to say so.
fails() {
  local says=$1 said
  shift
  if said=$(engine "$@" 2>&1); then
    echo "fio did not fail: $*" >&2
    return 1
  fi
  local twice
  twice=$(grep '^ringway: ' <<<"$said" | sort | uniq -d)
  [ -z "$twice" ] || { printf 'said more than once: %s\n' "$twice" >&2; return 1; }
  grep -qF -- "$says" <<<"$said" || { printf '%s\nis not said in\n%s\n' "$says" "$said" >&2; return 1; }
}

# outlives_kills: fio verifies what it writes while its target is killed twice; its output is in $work/out.
outlives_kills() {
  serve --pool "$work/pool" --pool-size 512MiB
  ringway volume create v 128MiB >/dev/null
  engine --volume=v --rw=randrw --bs=4k --size=64m --io_size=512m --iodepth=16 --rate_iops=4000 --time_based --runtime=8 --verify=crc32c \
    --verify_fatal=1 --verify_backlog=256 >"$work/out" 2>&1 &
  fio=$!
  for _ in 1 2; do
    sleep 2
    kill -9 "$target"
    wait "$target" 2>/dev/null || true
    : >"$work/ready"
    serve --pool "$work/pool"
  done
  wait "$fio" || { cat "$work/out" >&2; exit 1; }
}
