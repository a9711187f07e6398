#!/bin/bash
. "$(dirname "$0")/rig.sh"
over=shm
outlives_kills
