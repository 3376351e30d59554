#!/usr/bin/env bash
# Installs the Debian packages that the service needs, with their services kept off. `builderd setup` and script/setup run it; it
# needs root where something is missing, bash and apt. What is installed is left as it is.
#
#   debian_packages.sh [--with-browser] [PACKAGE...]   and the browser with which QA looks at pages, and further packages
set -euo pipefail

service_packages=(
  python3 python3-venv ca-certificates curl procps
  crun runc runsc conmon golang-github-containers-common # runtimes, shim, /usr/share/containers/seccomp.json
  nftables iproute2 kmod                                 # network
  btrfs-progs mount                                      # disks
  mmdebstrap                                             # base root file system
  haproxy util-linux-extra                               # previews; waitpid, which wakes the guard of HAProxy
  restic                                                 # backups
  bubblewrap util-linux                                  # the jail of what reads hostile apps' answers; flock
)
browser_packages=(chromium fonts-dejavu-core)

say() { printf '%s\n' "==> $*"; }
# Runs a command of apt or dpkg, and lets it say what it has to say (in $output) only when it failed. While another one is at work (a
# fresh machine looks for updates by itself after its first boot) it is waited for, up to 5 minutes: apt can wait for dpkg's locks, but
# not for its own.
quietly() {
  local deadline=$((SECONDS + 300)) told=
  until output=$(LC_ALL=C "$@" 2>&1 </dev/null); do
    grep -qiE 'unable to lock|could not get lock|lock was locked' <<<"$output" && [ "$SECONDS" -lt "$deadline" ] ||
      { printf '%s\n' "$output" >&2; die "failed: $*"; }
    [ "$told" ] || say "waiting until another installation of Debian packages has ended"
    told=yes
    sleep 2
  done
}
warn() { printf '%s\n' "builderd setup: $*" >&2; }
die() { printf '%s\n' "builderd setup: $*" >&2; exit 1; }

missing() {
  local package
  for package in "$@"; do
    [ "$(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || printf '%s\n' "$package"
  done
}

policy=/usr/sbin/policy-rc.d
clusters=/etc/postgresql-common/createcluster.d/builderd-setup.conf
# What the machine was like before, kept until it is like that again: a set-up that was killed half-way is taken up by the next.
before=/var/lib/builderd-setup

# While packages are installed, Debian's policy layer refuses to start any service, and PostgreSQL makes no cluster of its own.
hold_services() {
  if [ ! -d "$before" ]; then
    rm -rf "$before.new"
    mkdir -p "$before.new"
    enabled_units >"$before.new/enabled-units"
    if [ -e "$policy" ] || [ -L "$policy" ]; then cp -a "$policy" "$before.new/policy-rc.d"; fi
    mv "$before.new" "$before"
  fi
  trap release_services EXIT
  rm -f "$policy"
  printf '#!/bin/sh\nexit 101\n' >"$policy"
  chmod 755 "$policy"
  mkdir -p "${clusters%/*}"
  printf 'create_main_cluster = false\n' >"$clusters"
}

release_services() {
  trap - EXIT
  disable_new_units
  rm -f "$policy" "$clusters"
  rmdir --ignore-fail-on-non-empty "${clusters%/*}" "${clusters%/*/*}" 2>/dev/null || true
  if [ -e "$before/policy-rc.d" ] || [ -L "$before/policy-rc.d" ]; then cp -a "$before/policy-rc.d" "$policy"; fi
  rm -rf "$before"
}

enabled_units() {
  command -v systemctl >/dev/null || return 0
  systemctl list-unit-files --no-legend --no-pager --state=enabled --type=service,socket,timer 2>/dev/null | awk '{print $1}' | sort
}

# A package enables its service for the next boot even where it was not allowed to start it: undone for what came just now, and
# only for that, so that a HAProxy or PostgreSQL which was there before stays as its owner wants it.
disable_new_units() {
  local unit
  comm -13 "$before/enabled-units" <(enabled_units) | while read -r unit; do
    say "leaving Debian's $unit off"
    systemctl disable --quiet "$unit" 2>/dev/null || warn "could not disable $unit: run 'systemctl disable $unit'"
  done
}

install_packages() {
  local wanted
  mapfile -t wanted < <(missing "$@")
  [ "${#wanted[@]}" -gt 0 ] || [ -d "$before" ] || return 0
  [ "$(id -u)" = 0 ] || die "needs root to install Debian packages: ${wanted[*]}"
  # One at a time on the whole machine, whose services are held back meanwhile.
  mkdir -p /run/lock
  exec 8>/run/lock/builderd-setup
  flock 8
  mapfile -t wanted < <(missing "$@")
  [ "${#wanted[@]}" -gt 0 ] || [ -d "$before" ] || { exec 8>&-; return 0; }
  say "installing ${#wanted[@]} Debian packages: ${wanted[*]:-only ending what was cut off}"
  export DEBIAN_FRONTEND=noninteractive
  quietly apt-get update -qq
  [ -z "$output" ] || warn "$output"
  # What somebody else installs now is theirs to start: it is waited for before services are held back. Nothing is set here.
  [ -d "$before" ] || quietly dpkg --set-selections
  hold_services
  # Does nothing, unless an installation was cut off half-way.
  quietly dpkg --configure -a
  quietly apt-get -o Dpkg::Use-Pty=0 install -y -qq --no-install-recommends "${wanted[@]}"
  release_services
  exec 8>&-
}

command -v apt-get >/dev/null || die "this machine has no apt-get: the service runs on Debian 13"
packages=("${service_packages[@]}")
for argument in "$@"; do
  case $argument in
    --with-browser) packages+=("${browser_packages[@]}") ;;
    -*) die "unknown argument $argument (--with-browser)" ;;
    *) packages+=("$argument") ;;
  esac
done
install_packages "${packages[@]}"
