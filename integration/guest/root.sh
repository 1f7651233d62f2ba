#!/bin/bash
# root.sh - make the disk of the guest: a Debian 13 that a node of today could have, with its kernel beside it.
#
# usage: root.sh DIR      writes DIR/root.ext4, DIR/vmlinuz, DIR/initrd, and DIR/crun: its crun, to run here as well
#                         (needs root, debootstrap, e2fsprogs, kmod, cpio, patchelf)
#        root.sh -n DIR   tells by the exit code whether they are there already
#
# Nothing of the disk is changed by a guest, so it is made once. DIR/stamp says of what it was made.
set -euo pipefail
here=$(cd "$(dirname "$(readlink -f "$0")")" && pwd)
make=1
[ "${1-}" != -n ] || { make=''; shift; }
[ $# = 1 ] || { sed -n '2,/^set/s/^# \{0,1\}//p' "$0" >&2; exit 2; }
suite=trixie
packages=linux-image-cloud-$(dpkg --print-architecture),systemd,systemd-sysv,dbus,kmod,iproute2,iptables
packages+=,containerd,runc,crun,criu,libcriu2,containernetworking-plugins,busybox-static
# What the initrd loads: the disk, and what there is no udev for in the plain guest.
modules="virtio_blk ext4 overlay veth bridge br_netfilter tun loop
	nf_tables nft_compat nft_chain_nat xt_comment xt_MASQUERADE xt_addrtype xt_conntrack xt_nat xt_mark"

mkdir -p "$1"
out=$(cd "$1" && pwd)
stamp="$out $(cat "$here/root.sh" "$here/initrd" | sha256sum)"
[ "$(cat "$out/stamp" 2>/dev/null)" != "$stamp" ] || exit 0
[ -n "$make" ] || exit 1
tmp=$(mktemp -d "$out/making.XXXXXX")
trap 'rm -rf "$tmp"' EXIT
chmod 755 "$tmp"

debootstrap --variant=minbase --include="$packages" "$suite" "$tmp/root" "${DEBIAN_MIRROR:-http://deb.debian.org/debian}"
root=$tmp/root
kernel=$(basename "$root"/lib/modules/*)
cp "$root/boot/vmlinuz-$kernel" "$out/vmlinuz"

initrd=$tmp/initrd
mkdir -p "$initrd"/{bin,dev,proc,root,modules}
cp "$root/bin/busybox" "$initrd/bin/busybox"
install -m 755 "$here/initrd" "$initrd/init"
n=100
for m in $modules; do
	modprobe -d "$root" -S "$kernel" --show-depends "$m"
done | awk '$1 == "insmod" && !seen[$2]++ { print $2 }' | while read -r file; do
	n=$((n + 1))
	case $file in
	*.xz) xz -dc "$file" >"$initrd/modules/$n.ko" ;;
	*) cp "$file" "$initrd/modules/$n.ko" ;;
	esac
done
(cd "$initrd" && find . | cpio --quiet -o -H newc) >"$out/initrd"

# crun with the libraries that it was built for, and with their loader: those of an older Debian would not do.
mkdir "$tmp/crun"
cp "$root/usr/bin/crun" "$tmp/crun"
queue=(crun)
while [ ${#queue[@]} -gt 0 ]; do
	for lib in $(patchelf --print-needed "$tmp/crun/${queue[0]}"); do
		[ ! -e "$tmp/crun/$lib" ] || continue
		cp -L "$root"/usr/lib/*-linux-gnu/"$lib" "$tmp/crun/"
		queue+=("$lib")
	done
	queue=("${queue[@]:1}")
done
loader=$(basename "$(patchelf --print-interpreter "$tmp/crun/crun")")
[ -e "$tmp/crun/$loader" ] || cp -L "$root"/usr/lib/*-linux-gnu/"$loader" "$tmp/crun/"
patchelf --set-interpreter "$out/crun/$loader" --set-rpath "$out/crun" --force-rpath "$tmp/crun/crun"

# What a disposable machine has no use for.
rm -rf "$root"/boot/* "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/* "$root"/usr/share/{doc,man,locale}
rm -f "$root/etc/resolv.conf"
mkdir "$root/payload"
size=$(($(du -sm "$root" | cut -f1) + 2048))
truncate -s "${size}M" "$tmp/root.ext4"
mke2fs -q -t ext4 -O ^has_journal -m 0 -d "$root" "$tmp/root.ext4"
rm -rf "$out/crun"
mv "$tmp/root.ext4" "$tmp/crun" "$out"
echo "$stamp" >"$out/stamp"
