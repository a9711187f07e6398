# Ringway behind the steps of guest-steps.sh: the binary of the shared folder, with its pool on the pool's disk.
CONTROL=/run/ringway/control.sock

ringway() { /tmp/ringway "$@"; }

target_format() {
  # not from 9p: a page of the program that is fetched late must not wait for the host
  cp ringway /tmp/ringway
  mkdir -p /run/ringway
  ringway pool format "$DISK"
}

target_start() {
  # not by the function: $! would be a shell's, and killing that leaves the target alive
  /tmp/ringway serve --pool "$DISK" --listen "$TRANSPORT://$ADDRESS:$PORT" --control $CONTROL --runtime /run/ringway --cores "$CORES" \
    "${SERVE[@]}" >>"$TARGET_LOG" 2>&1 &
  TARGET=$!
  wait_until 60 "an answer on $CONTROL" target_answers
}
target_answers() {
  kill -0 "$TARGET" 2>/dev/null || fail "the target ended by itself"
  ringway pool show --json --control $CONTROL >/dev/null 2>&1
}

target_kill() {
  kill -KILL "$TARGET"
  wait "$TARGET" 2>/dev/null || true
}

target_stop() {
  kill -TERM "$TARGET"
  wait "$TARGET" || fail "the target did not end in order after SIGTERM: status $?"
  ringway inspect "$DISK" >/tmp/inspected || { cat /tmp/inspected; fail "the pool is not sound"; }
}

volume_create() { ringway volume create "$1" "$2" ${3:+--lba "$3"} --control $CONTROL; }
volume_resize() { ringway volume resize "$1" "$2" --control $CONTROL; }
volume_shrink_refused() {
  if ringway volume resize "$1" "$2" --control $CONTROL 2>/tmp/refusal; then fail "a volume was made smaller"; fi
  step "refused as it should be: $(cat /tmp/refusal)"
}

# counted NAME [WORD...]: the sum of a metric over the lines that have all these words
counted() {
  local name=$1 word
  shift
  ringway metrics --control $CONTROL | grep "^ringway_$name[{ ]" >/tmp/counted || true
  for word in "$@"; do
    grep -F -- "$word" /tmp/counted >/tmp/counted.some || true
    mv /tmp/counted.some /tmp/counted
  done
  awk '{ sum += $NF } END { print sum + 0 }' /tmp/counted
}

# the pool's own figure, which is the truth about space: the test's volume is the only one in it
space_allocated() { ringway pool show --json --control $CONTROL | jq -e '.used'; }
