# The kernel's own target behind the steps of guest-steps.sh: a volume is a file on an ext4 on the pool's disk.
#
# It is here to prove the tests and the VM: where a test fails with Ringway and passes with this, the fault is Ringway's.
NVMET=/sys/kernel/config/nvmet
FILES=/tmp/nvmet-files

target_format() {
  modprobe -a nvmet nvmet-$TRANSPORT loop
  grep -q ' /sys/kernel/config ' /proc/mounts || mount -t configfs none /sys/kernel/config
  mkfs.ext4 -q -E lazy_itable_init=0 "$DISK"
  mkdir -p $FILES
  mount "$DISK" $FILES
}

target_start() {
  mkdir -p $NVMET/ports/1
  echo ipv4 >$NVMET/ports/1/addr_adrfam 2>/dev/null || true
  echo $TRANSPORT >$NVMET/ports/1/addr_trtype
  echo $ADDRESS >$NVMET/ports/1/addr_traddr
  echo $PORT >$NVMET/ports/1/addr_trsvcid
  local subsystem
  for subsystem in $NVMET/subsystems/*; do
    [ ! -d "$subsystem" ] || ln -s "$subsystem" $NVMET/ports/1/subsystems/
  done
}

# The closest there is to killing a kernel: every connection is cut at once and the port is closed.
target_kill() {
  local link
  for link in $NVMET/ports/1/subsystems/*; do
    [ ! -L "$link" ] || rm "$link"
  done
  rmdir $NVMET/ports/1
}
target_stop() { target_kill; }

# The LBA is the file system's block, 4096: nvmet chooses it.
volume_create() {
  local subsystem
  subsystem=$NVMET/subsystems/$(nqn_of "$1")
  truncate -s "$(in_bytes "$2")" "$FILES/$1"
  mkdir -p "$subsystem/namespaces/1"
  echo 1 >"$subsystem/attr_allow_any_host"
  echo "$FILES/$1" >"$subsystem/namespaces/1/device_path"
  echo 1 >"$subsystem/namespaces/1/enable"
  ln -s "$subsystem" $NVMET/ports/1/subsystems/
}

volume_resize() {
  truncate -s "$(in_bytes "$2")" "$FILES/$1"
  echo 1 >"$NVMET/subsystems/$(nqn_of "$1")/namespaces/1/revalidate_size"
}
# nvmet would shrink: that it must be refused is a promise of ours alone
volume_shrink_refused() { :; }

space_allocated() {
  sync -f "$FILES/$1"
  echo $(($(stat -c %b "$FILES/$1") * 512))
}

in_bytes() { numfmt --from=iec-i "${1%B}"; }
