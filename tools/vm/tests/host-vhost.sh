#!/bin/bash
# Run on the host for a test that says `# host: vhost`: a target of the machine that runs the guest, with one volume as the guest's
# vhost-user disk. Its first line on stdout is the QEMU arguments. Afterwards it does what the guest asks for (see `ask` in
# guest-steps.sh), until its stdin is closed.
#
# Environment: RINGWAY, the program; SHARE, the folder shared with the guest; WORK, an empty folder for the pool.
set -euo pipefail
VOLUME=disk
RUNTIME=$WORK/run
LOG=$WORK/target.log

ringway() { "$RINGWAY" "$@" --runtime "$RUNTIME"; }

start() {
  "$RINGWAY" serve --pool "$WORK/pool" --runtime "$RUNTIME" --listen tcp://127.0.0.1:0 --cores "${CORES:-0,1}" >>"$LOG" 2>&1 &
  TARGET=$!
  local tries=0
  until ringway pool show --json >/dev/null 2>&1; do
    kill -0 "$TARGET" 2>/dev/null || { tail -n 20 "$LOG" >&2; return 1; }
    tries=$((tries + 1))
    [ $tries -lt 300 ] || { echo "the target does not answer" >&2; return 1; }
    sleep 0.1
  done
}

finish() {
  kill -KILL "${TARGET:-}" 2>/dev/null || true
  wait 2>/dev/null || true
}
trap finish EXIT

answer() { # what the guest asks for
  case $1 in
    kill) kill -KILL "$TARGET"; wait "$TARGET" 2>/dev/null || true ;;
    start) start ;;
    resize) ringway volume resize "$VOLUME" "$2" ;;
    used) ringway pool show --json | tr ',{' '\n\n' | sed -n 's/^ *"used": *\([0-9]*\).*/\1/p' | head -n 1 ;;
    stop) kill -TERM "$TARGET"; wait "$TARGET"; "$RINGWAY" inspect "$WORK/pool" ;;
    *) echo "nobody knows how to $1" >&2; return 1 ;;
  esac
}

mkdir -p "$RUNTIME"
rm -f "$SHARE"/ask.* "$SHARE"/answer.*
"$RINGWAY" pool format "$WORK/pool" --size 3GiB --allocate sparse >/dev/null
start
ringway volume create "$VOLUME" 1GiB >/dev/null
echo "-chardev socket,id=vhost,path=$RUNTIME/vhost/$VOLUME.sock,reconnect-ms=200" \
  "-device vhost-user-blk-pci,chardev=vhost,num-queues=2,queue-size=256,packed=on"

number=1
while true; do
  if [ -e "$SHARE/ask.$number" ]; then
    read -ra words <"$SHARE/ask.$number"
    status=0
    answer "${words[@]}" >"$SHARE/said.$number" 2>&1 || status=$?
    echo $status >"$SHARE/answer.tmp"
    mv "$SHARE/answer.tmp" "$SHARE/answer.$number"
    number=$((number + 1))
  fi
  # 1 is the end of stdin, more is the time
  read -r -t 0.05 _ || { [ $? -gt 128 ] || exit 0; }
done
