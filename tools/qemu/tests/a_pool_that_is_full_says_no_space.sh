#!/bin/bash
. "$(dirname "$0")/rig.sh"
serve --pool mem:128MiB
ringway volume create v 512MiB >/dev/null
for volume in "$tcp/v" openvstorage:v; do
  fails 'No space left on device' io "$volume" 'write -P 1 0 256M'
  # What is given back can be written again.
  more=(-d unmap)
  io "$volume" 'discard 0 512M'
  more=()
  written() { io "$volume" 'write -P 2 0 16M' 'read -P 2 0 16M' 2>/dev/null; }
  wait_for "there is space again" written
done
