#!/usr/bin/env bash
# Installs what the tests start (redis-server, nginx, chromium, and ip and nft for lossy networks) where that is possible. Exit status 0: all of it is
# there. 3: something is missing, named on the output; the tests that need it will be skipped.
source "$(dirname "$0")/lib.sh"

tools=(redis-server nginx chromium ip nft)
declare -A package=([ip]=iproute2 [nft]=nftables) # where it is not called as the tool is

missing() {
  local t
  for t in "${tools[@]}"; do
    have "$t" || printf '%s ' "$t"
  done
}

want=$(missing)
if [ -n "$want" ] && have apt-get && [ "$(id -u)" = 0 ]; then
  echo "installing ${want}"
  export DEBIAN_FRONTEND=noninteractive
  # Another installer may hold the lock: wait for it, and go on to the report when it does not work out.
  packages=()
  for t in $want; do packages+=("${package[$t]:-$t}"); done
  apt-get -qq -o DPkg::Lock::Timeout=120 update && apt-get -qq -o DPkg::Lock::Timeout=120 install -y --no-install-recommends "${packages[@]}" >/dev/null || echo "apt-get did not succeed"
  want=$(missing)
fi
if ! have node || ! have npm; then
  want="${want}node npm "
fi
if [ -n "$want" ]; then
  echo "not here and not installable: ${want}-- the tests that need them are skipped"
  exit 3
fi
echo "all here: ${tools[*]} node"
