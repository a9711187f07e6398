#!/bin/bash
# limit: 300
# disk: 4 GiB
# kernels: backports
#
# ext4 on a volume that is written to without a pause: a snapshot is taken while files come and go, a clone of it is attached beside
# the volume, its journal is replayed as after a power failure, and what had been synced by the time of the snapshot is there as it
# was. The volume goes on; the clone is written to, and neither sees the other.
. tests/guest-steps.sh

fresh_target files 1GiB

step "a file system with files that stay, synced"
attach files
VOLUME=$DEVICE
mkfs.ext4 -q "$VOLUME"
mkdir -p /tmp/volume /tmp/clone
mount "$VOLUME" /tmp/volume
mkdir /tmp/volume/stay /tmp/volume/busy
cp /mnt/host/tests/*.sh /usr/bin/[a-g]* /tmp/volume/stay/ 2>/dev/null || true
(cd /tmp/volume/stay && find . -type f -print0 | sort -z | xargs -0 sha256sum) >/tmp/sums
sync -f /tmp/volume
step "$(wc -l </tmp/sums) files"

# files that carry their own name and length as their content: whoever finds one whole knows whether it is right
busy() {
  local n=0
  while [ ! -e /tmp/enough ]; do
    n=$((n + 1))
    local file=/tmp/volume/busy/$((n % 40))
    { yes "file $n" 2>/dev/null || true; } | head -c $((n % 7 * 30000 + 4096)) >"$file.new"
    sync "$file.new"
    mv "$file.new" "$file"
    if [ $((n % 5)) = 0 ]; then rm -f "/tmp/volume/busy/$(((n + 20) % 40))"; fi
  done
  echo "$n" >/tmp/written
}

checked() { # FOLDER: every file that is not half-written says one thing from its first byte to its last
  local file first whole=0
  for file in "$1"/*; do
    case $file in *.new) continue ;; esac
    [ -s "$file" ] || fail "$file is empty: it had been synced before it got its name"
    first=$(head -n 1 "$file")
    { yes "$first" 2>/dev/null || true; } | head -c "$(stat -c %s "$file")" | cmp -s - "$file" || fail "$file is of two files"
    whole=$((whole + 1))
  done
  [ "$whole" -gt 0 ] || fail "no file in $1"
  step "$whole files of $1 are whole"
}

busy &
BUSY=$!

for round in 1 2 3; do
  sleep 3
  ringway snapshot create files "s$round" --timeout 60s --control $CONTROL
  ringway volume clone "files@s$round" "clone$round" --control $CONTROL
  attach "clone$round"
  CLONE=$DEVICE
  # what a mount does after a power failure: the journal first; then nothing may be wrong
  fsck.ext4 -p -E journal_only "$CLONE" >/tmp/fsck || { cat /tmp/fsck; fail "the journal of clone $round cannot be replayed"; }
  fsck.ext4 -fn "$CLONE" >/tmp/fsck || { cat /tmp/fsck; fail "the file system of clone $round is damaged"; }
  mount "$CLONE" /tmp/clone
  (cd /tmp/clone/stay && sha256sum --quiet --check /tmp/sums)
  checked /tmp/clone/busy
  # each goes its own way
  echo mine >/tmp/clone/mine
  [ ! -e /tmp/volume/mine ] || fail "the volume has a file of its clone"
  umount /tmp/clone
  detach "clone$round"
  kill -0 $BUSY || fail "the writer has ended"
done

touch /tmp/enough
wait $BUSY
step "$(cat /tmp/written) files were written meanwhile"
umount /tmp/volume
fsck.ext4 -fn "$VOLUME" >/tmp/fsck || { cat /tmp/fsck; fail "the file system is damaged"; }

step "the volume goes back to the first snapshot"
detach files
ringway snapshot rollback files@s1 --control $CONTROL 2>/tmp/refused && fail "a rollback dropped snapshots that clones need"
for round in 1 2 3; do ringway volume remove "clone$round" --control $CONTROL; done
ringway snapshot rollback files@s1 --control $CONTROL
[ "$(ringway snapshot list files --json --control $CONTROL | jq length)" = 1 ] || fail "later snapshots are still there"
attach files
fsck.ext4 -p -E journal_only "$DEVICE" >/tmp/fsck || { cat /tmp/fsck; fail "the journal cannot be replayed"; }
mount "$DEVICE" /tmp/volume
(cd /tmp/volume/stay && sha256sum --quiet --check /tmp/sums)
checked /tmp/volume/busy
umount /tmp/volume
detach files
target_stop
