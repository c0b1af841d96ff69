#!/usr/bin/env bash
# What `make up` needs of this machine, asked before the long build rather than
# after it.
source "$(dirname "$0")/lib.sh"
cd "$ROOT"
[ "$(id -u)" = 0 ] || die "a sandbox is made of namespaces and control groups: run make up as root"
root=${SKERRY_SANDBOX_ROOT:-$OUT/sandbox}
[ ! -e "$root/default" ] || die "a sandbox named default exists already; make down removes it"
mkdir -p "$OUT"
[ "$(stat -f -c %T "$OUT")" != overlayfs ] ||
	die "$OUT is on overlayfs, on which containerd cannot work: use a checkout on a real file system"
grep -qw cgroup /proc/filesystems || grep -qw cgroup2 /proc/filesystems || die "this kernel has no control groups"
grep -qs ' tun$' /proc/misc || modprobe tun 2>/dev/null || die "this kernel has no TUN devices, which links are made of: modprobe tun"
available=$(df --output=avail -BG "$OUT" | tail -n 1 | tr -dc 0-9)
[ "$available" -ge 15 ] || die "$OUT has $available GB left; building and running takes about 15"
