#!/bin/bash
. "$(dirname "$0")/rig.sh"
serve --pool mem:256MiB
ringway volume create v 8MiB >/dev/null
both='server and volume name must be specified'
for bad in openvstorage+tcp: openvstorage+tcp:127.0.0.1 openvstorage+tcp:/v openvstorage+tcp:127.0.0.1/ "openvstorage+tcp::$port/v" \
  openvstorage+tcp:127.0.0.1:21321 openvstorage+tcp:127.0.0.1/:snapshot-timeout=1 openvstorage+rdma:v; do
  fails "$both" img info "$bad"
done
for bad in openvstorage: openvstorage+shm: openvstorage::snapshot-timeout=1; do
  fails 'volume name must be specified' img info "$bad"
done
opts() { img info --image-opts "driver=openvstorage,$1"; }
fails 'volume name must be specified' opts transport=shm
fails 'volume name must be specified' opts transport=tcp,host=127.0.0.1
fails 'server/port must be specified' opts transport=tcp,volume=v
fails 'server/port must be specified' opts transport=rdma,volume=v
fails 'is none of shm, tcp and rdma' opts transport=pigeon,volume=v
fails 'go with transport tcp or rdma' opts volume=v,host=127.0.0.1
fails "does not go with driver 'openvstorage+tcp'" img info --image-opts driver=openvstorage+tcp,transport=shm,volume=v
fails "'nonsense'" opts volume=v,nonsense=1
twice='volume/stimeout/server/port/transport and a filename may not be specified at the same time'
for option in volume=v snapshot-timeout=1 host=h port=1 transport=tcp; do
  has "$(with qemu-io -c "open -r -o driver=raw,file.$option $tcp/v" 2>&1)" "$twice"
done
for port_given in 0 65536 x '' -1 1x; do
  fails "is not a number from 1 to 65535" img info "openvstorage+tcp:127.0.0.1:$port_given/v"
done
for timeout in '' x -1 1.5 99999999999; do
  fails "snapshot-timeout '$timeout' is not a number" img info "openvstorage:v:snapshot-timeout=$timeout"
done
fails "'enable-ha' expects 'on' or 'off'" img info openvstorage:v:enable-ha=maybe
fails "'read-only' is no option of a volume" img info openvstorage:v:read-only=on
fails "'' is no option of a volume" img info openvstorage:v:
fails 'enable-ha is specified twice' img info openvstorage:v:enable-ha=on:enable-ha=on
for missing in "$tcp/missing" openvstorage:missing "$tcp/v@missing"; do
  begun=$SECONDS
  fails 'missing' img info "$missing"
  [ $((SECONDS - begun)) -lt 10 ] || { echo "$missing took $((SECONDS - begun)) s" >&2; exit 1; }
done
fails '200' img info "openvstorage:$(printf 'n%.0s' $(seq 300))"
fails 'A-Z' img info 'openvstorage:a b'
fails 'A-Z' opts 'volume=a:b'
fails '' img info openvstorage+rdma:127.0.0.1/v
fails 'no-such-host.invalid' img info openvstorage+tcp:no-such-host.invalid/v
fails '127.0.0.1:1' img info openvstorage+tcp:127.0.0.1:1/v
fails '' img create -f raw "$tcp/zero" 0
fails 'too large' img create -f raw "$tcp/huge" 65T
fails "preallocation" img create -f raw -o preallocation=full openvstorage:full 8M
# A target that is not there.
stop
for volume in "$tcp/v" openvstorage:v; do
  begun=$SECONDS
  fails 'Could not open' img info "$volume"
  [ $((SECONDS - begun)) -lt 10 ] || { echo "$volume took $((SECONDS - begun)) s" >&2; exit 1; }
done
# Two targets: a volume of one is not made, cut or grown at the other, though that has one of the same name.
other=$port
serve --pool mem:256MiB
[ "$port" = "$other" ]
ringway volume create v 8MiB >/dev/null
here=$run elsewhere=$work/elsewhere
mkdir -p "$elsewhere"
"$RINGWAY" serve --die-with-parent --runtime "$elsewhere" --crash-log "$elsewhere" --listen tcp://127.0.0.1:0 --pool mem:128MiB >"$work/second" 2>>"$work/log" &
started+=($!)
wait_for "the second target is ready" test -s "$work/second"
RINGWAY_RUNTIME_DIR=$elsewhere ringway volume create v 8MiB >/dev/null
export RINGWAY_RUNTIME_DIR=$elsewhere
io "$tcp/v" 'write -P 1 0 1M'
img info -f raw "$tcp/v" >/dev/null
fails 'two targets' img resize -f raw "$tcp/v" 16M
fails 'two targets' img snapshot --image-opts -c s "driver=openvstorage,transport=tcp,host=127.0.0.1,port=$port,volume=v"
fails "another target's" img create -f raw "$tcp/new" 8M
[ "$(ringway volume list --json | grep -c '"new"')" = 0 ]
# What it holds is asked at nobody else's door: all of it counts as data.
has "$(img map -f raw --output=json "$tcp/v")" '"start": 0, "length": 8388608, "depth": 0, "present": true, "zero": false, "data": true'
