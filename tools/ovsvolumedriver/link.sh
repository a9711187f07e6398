#!/bin/sh
# Links the shared object out of the static library, with its header and its pkg-config file beside it:
#   link.sh LIBRINGWAY_OVSVOLUMEDRIVER.a FOLDER [PREFIX]
# PREFIX is where FOLDER's content will be, for pkg-config; FOLDER where none is given.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
archive=$1
mkdir -p "$2/lib/pkgconfig" "$2/include/openvstorage"
folder=$(cd "$2" && pwd)
prefix=${3:-$folder}

# Nothing refers to the functions yet: each is asked for by name. Never unloaded, since threads and a fork hook stay behind.
wanted=$(sed -n 's/^\t\t\(ovs_[a-z_]*\);$/-Wl,-u,\1/p' "$here/exports.map")
# shellcheck disable=SC2086
gcc -shared -o "$folder/lib/libovsvolumedriver.so.1" \
	-Wl,-soname,libovsvolumedriver.so.1 -Wl,--version-script="$here/exports.map" $wanted "$archive" \
	-Wl,--gc-sections -Wl,-z,nodelete -Wl,-z,defs -Wl,-z,relro -Wl,-z,now -lpthread -ldl -lm -lgcc_s -lc
ln -sf libovsvolumedriver.so.1 "$folder/lib/libovsvolumedriver.so"
cp "$here/include/openvstorage/volumedriver.h" "$folder/include/openvstorage/"
cat > "$folder/lib/pkgconfig/libovsvolumedriver.pc" <<PC
prefix=$prefix
libdir=\${prefix}/lib
includedir=\${prefix}/include

Name: libovsvolumedriver
Description: Ringway volumes by the interface of Open vStorage's volume driver library
Version: 1.0.0
Libs: -L\${libdir} -lovsvolumedriver
Cflags: -I\${includedir}
PC
