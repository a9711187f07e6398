# Sourced: Debian's packages by an apt whose state is in a folder of its own, so that the machine's is left alone; no root needed.

# debian_apt FOLDER: sources and packages of Debian 12 and its backports, from where this machine's apt has Debian 12.
debian_apt() {
  local apt=$1/apt mirror
  mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Codename: bookworm' 'Origin: Debian' | head -n 1)
  [ -n "$mirror" ] || { echo "apt has no Debian 12 (bookworm) source; add one and run apt-get update" >&2; return 1; }
  mkdir -p "$apt/parts" "$apt/lists/partial" "$apt/archives/partial"
  : >"$apt/status"
  cat >"$apt/parts/debian.sources" <<SOURCES
Types: deb deb-src
URIs: $mirror
Suites: bookworm bookworm-backports
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
SOURCES
  cat >"$apt/conf" <<CONF
Dir::Etc::sourcelist "/dev/null"; Dir::Etc::sourceparts "$apt/parts"; Dir::Etc::preferencesparts "/dev/null";
Dir::State::lists "$apt/lists"; Dir::State::status "$apt/status"; Dir::Cache "$apt"; Dir::Cache::archives "$apt/archives";
APT::Sandbox::User ""; Debug::NoLocking "1"; APT::Architecture "amd64"; Acquire::Languages "none";
CONF
  export APT_CONFIG=$apt/conf
  # The lists of a day ago are good enough, unless what is wanted has gone.
  [ -n "$(find "$apt/lists" -maxdepth 1 -name '*Packages*' -mtime -1 -print -quit)" ] || apt-get -qq update
}

# debian_package NAME SUITE FOLDER: unpacks the package there; SUITE is bookworm or bookworm-backports.
debian_package() {
  local name=$1 suite=$2 folder=$3
  mkdir -p "$folder"
  (cd "$folder" && apt-get -qq download "$name/$suite" && dpkg-deb -x "$name"_*.deb . && rm -f "$name"_*.deb)
}
