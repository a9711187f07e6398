#!/bin/bash
. "$(dirname "$0")/rig.sh"
serve --pool mem:256MiB
ringway volume create dir/v 8MiB >/dev/null
for volume in \
  "openvstorage:dir/v" "openvstorage:dir/v:snapshot-timeout=7" "openvstorage+shm:dir/v" "openvstorage+shm:dir/v,snapshot-timeout=0" \
  "$tcp/dir/v" "$tcp/dir/v:snapshot-timeout=7" "$tcp/dir/v,snapshot-timeout=7" "$tcp/dir/v:snapshot-timeout=7:enable-ha=off" \
  "$tcp/dir/v:enable-ha=on" "openvstorage+tcp:localhost:$port/dir/v" "openvstorage+tcp:127.0.0.1:1,127.0.0.1:$port/dir/v" \
  'json:{"driver": "openvstorage", "volume": "dir/v", "enable-ha": true, "snapshot-timeout": 3}' \
  'json:{"driver": "openvstorage+tcp", "volume": "dir/v", "host": "127.0.0.1", "port": '"$port"', "enable-ha": false}' \
  'json:{"driver": "raw", "file": {"driver": "openvstorage", "transport": "tcp", "volume": "dir/v", "host": "127.0.0.1", "port": "'"$port"'"}}'; do
  has "$(img info "$volume")" '8 MiB'
done
has "$(img info --image-opts "driver=raw,file.driver=openvstorage,file.volume=dir/v")" '8 MiB'
options=driver=openvstorage,transport=tcp,host=127.0.0.1,port=$port,volume=dir/v,snapshot-timeout=9,enable-ha=off
# What QEMU calls it afterwards opens it as well.
has "$(img info --image-opts "$options")" "image: $tcp/dir/v:snapshot-timeout=9:enable-ha=off"
has "$(img info --image-opts driver=openvstorage,volume=dir/v)" "image: openvstorage:dir/v"
img create -q -f qcow2 -b "$tcp/dir/v" -F raw overlay.qcow2
has "$(img info --backing-chain overlay.qcow2)" "image: $tcp/dir/v"
