#!/bin/sh
# Compiles the backing store and links it with libovsvolumedriver:
#   build.sh FOLDER-OF-TGT'S-HEADERS PREFIX-OF-THE-LIBRARY OUTPUT
# The headers are those of the tgtd that will load it, tgt-1.0.85/usr; the prefix is as of `cargo xtask ovsvolumedriver --prefix`.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
# tgt is compiled without strict aliasing, which its lists rely on; its headers are not ours to warn about.
gcc -shared -fPIC -O2 -g -fno-strict-aliasing -fvisibility=hidden -D_GNU_SOURCE \
	-Wall -Wextra -Wno-unused-parameter -Wno-sign-compare -Werror \
	-I "$2/include" -isystem "$1" -o "$3" "$here"/c/*.c \
	-Wl,-z,relro -Wl,-z,now -L "$2/lib" -lovsvolumedriver -lpthread
