#!/bin/bash
. "$(dirname "$0")/rig.sh"
outlives_kills
grep -q 'connected again after' "$work/out" || { cat "$work/out" >&2; exit 1; }
