#!/bin/bash
. "$(dirname "$0")/rig.sh"
# A whole QEMU, of the version that is installed: machines without processors, which are told what to do to their disks.
serve --pool mem:256MiB
ringway volume create v 64MiB >/dev/null

# machine NAME ARGS: sets $in_NAME and $out_NAME to what its QMP is spoken over.
machine() {
  local name=$1
  shift
  mkfifo "$name.in" "$name.out"
  timeout 120 ringway-qemu qemu-system-x86_64 -machine none -nodefaults -display none -no-user-config -qmp stdio "$@" <"$name.in" >"$name.out" 2>>log &
  started+=($!)
  local in out
  exec {in}>"$name.in" {out}<"$name.out"
  declare -g "in_$name=$in" "out_$name=$out"
  qmp "$name" '{"execute": "qmp_capabilities"}'
}

# qmp NAME COMMAND: its answer, which has to be no error, is in $answer.
qmp() {
  local in=in_$1 out=out_$1
  echo "$2" >&"${!in}"
  while read -r -t 60 answer <&"${!out}"; do
    case $answer in *'"error"'*) echo "$2: $answer" >&2; return 1 ;; *'"return"'*) return ;; esac
  done
  echo "$2: no answer" >&2
  return 1
}

# hmp NAME LINE: a command of the human monitor that fails by what it prints.
hmp() {
  qmp "$1" "{\"execute\": \"human-monitor-command\", \"arguments\": {\"command-line\": \"$2\"}}"
  case $answer in *[Ee]rror* | *fail* | *annot*) echo "$2: $answer" >&2; return 1 ;; esac
}

drive="file=$tcp/v:snapshot-timeout=120,if=none,id=disk,format=raw"
machine first -drive "$drive"
hmp first "qemu-io disk \\\"write -P 1 0 1M\\\""
qmp first '{"execute": "blockdev-snapshot-internal-sync", "arguments": {"device": "disk", "name": "by-qmp"}}'
ringway snapshot show v@by-qmp >/dev/null
hmp first "qemu-io disk \\\"write -P 2 0 1M\\\""
qmp first '{"execute": "block_resize", "arguments": {"device": "disk", "size": 134217728}}'
qmp first '{"execute": "blockdev-snapshot-delete-internal-sync", "arguments": {"device": "disk", "name": "by-qmp"}}'
fails 'no snapshot' "$RINGWAY" snapshot show v@by-qmp

# It moves: the second has the disk open all the while, and writes only once it runs.
machine second -incoming "unix:$run/move.sock" -drive "$drive"
hmp first "qemu-io disk \\\"write -P 3 1M 1M\\\""
qmp first "{\"execute\": \"migrate\", \"arguments\": {\"uri\": \"unix:$run/move.sock\"}}"
for _ in $(seq 300); do
  qmp first '{"execute": "query-migrate"}'
  case $answer in *'"completed"'*) break ;; *'"failed"'*) echo "$answer" >&2; exit 1 ;; esac
  sleep 0.1
done
qmp second '{"execute": "cont"}'
hmp second "qemu-io disk \\\"read -P 3 1M 1M\\\""
hmp second "qemu-io disk \\\"write -P 4 2M 1M\\\""
qmp first '{"execute": "quit"}'

# An overlay takes all that it needs from the volume, and is told so.
img create -q -f qcow2 -b "$tcp/v" -F raw overlay.qcow2
qmp second '{"execute": "quit"}'
wait "${started[@]}" || true
machine third -drive file=overlay.qcow2,if=none,id=disk,format=qcow2
qmp third '{"execute": "block-stream", "arguments": {"device": "disk", "job-id": "job"}}'
for _ in $(seq 300); do
  qmp third '{"execute": "query-block-jobs"}'
  case $answer in *'[]'*) break ;; esac
  sleep 0.1
done
qmp third '{"execute": "quit"}'
wait "${started[-1]}"
case $(img info overlay.qcow2) in *backing*) echo "it still has a backing file" >&2; exit 1 ;; esac
io "json:{\"driver\": \"qcow2\", \"file\": {\"driver\": \"file\", \"filename\": \"overlay.qcow2\"}}" 'read -P 2 0 1M' 'read -P 3 1M 1M' 'read -P 4 2M 1M'
