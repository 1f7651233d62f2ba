#!/bin/bash
# arm64.sh - run the unit tests on arm64: in a guest with such a processor, emulated, and the kernel of Debian 13.
#
# usage: arm64.sh [-t SECS] DIR PACKAGE...
#   DIR       where the kernel and a small Debian are kept between runs
#   PACKAGE   directories of packages of this module
#   -t SECS   end the guest after SECS, default 900
#   $ENTRY    how the linker makes shim/entry the entry point, see the Makefile
#
# The emulator of single programs, qemu-aarch64, would not do: it knows neither the flags by which a process starts in
# new namespaces nor PR_SET_CHILD_SUBREAPER. The output is shown if a test fails.
set -euo pipefail
here=$(cd "$(dirname "$(readlink -f "$0")")" && pwd)
limit=900
while getopts t: o; do
	case $o in t) limit=$OPTARG ;; *) exit 2 ;; esac
done
shift $((OPTIND - 1))
[ $# -ge 2 ] || { sed -n '2,/^set/s/^# \{0,1\}//p' "$0" >&2; exit 2; }
mkdir -p "$1"
dir=$(cd "$1" && pwd)
shift
cd "$here/../.."
tmp=$(mktemp -d)
qemu=''
cleanup() {
	[ -z "$qemu" ] || { kill "$qemu" && wait "$qemu"; } 2>/dev/null || :
	rm -rf "$tmp"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# make_root unpacks a small Debian, without running any of it, and takes its kernel out.
make_root() {
	local root=$tmp/making modules='veth overlay' kernel deb
	debootstrap --foreign --arch=arm64 --variant=minbase --include=linux-image-cloud-arm64,iproute2,kmod \
		trixie "$root" "${DEBIAN_MIRROR:-http://deb.debian.org/debian}"
	for deb in "$root"/var/cache/apt/archives/*.deb; do
		case ${deb##*/} in
		linux-image-*-cloud-arm64_* | iproute2_* | kmod_* | lib*) dpkg-deb -x "$deb" "$root" ;;
		esac
	done
	kernel=$(basename "$root"/usr/lib/modules/*)
	cp "$root/boot/vmlinuz-$kernel" "$dir/vmlinuz"
	mkdir "$root/modules"
	for m in $modules; do
		find "$root/usr/lib/modules" -name "$m.ko*" -exec cp -t "$root/modules" {} +
	done
	xz -d "$root"/modules/*.xz
	rm -rf "$root"/{boot,debootstrap} "$root"/var/{cache,lib} "$root"/usr/share "$root/usr/lib/modules"
	# debootstrap may have made a link of one (of fakechroot's kind).
	rm -rf "$root"/{proc,sys,dev}
	mkdir "$root"/{proc,sys,dev}
	mv "$root" "$dir/root"
}
[ -d "$dir/root" ] || make_root >"$tmp/log" 2>&1 || { cat "$tmp/log" >&2; exit 1; }

root=$tmp/root
cp -a "$dir/root" "$root"
mkdir -p "$root/tests"
echo 'root:x:0:0:root:/root:/bin/sh' >"$root/etc/passwd"
echo '127.0.0.1 localhost' >"$root/etc/hosts"
echo 'nameserver 127.0.0.1' >"$root/etc/resolv.conf"
for p; do
	mkdir -p "$root/tests/$p"
	ldflags='-s -w'
	case $p in cmd/* | shim | shim/entry) ldflags+=" ${ENTRY-}" ;; esac
	CGO_ENABLED=0 GOARCH=arm64 "${GO:-go}" test -c -tags no_grpc -ldflags "$ldflags" -o "$root/tests/$p/tests" "./$p"
	[ ! -e "$p/testdata" ] || cp -a "$p/testdata" "$root/tests/$p"
done
cat >"$root/init" <<X
#!/bin/sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
for m in /modules/*.ko; do insmod \$m; done
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm /dev/mqueue
mount -t devpts devpts /dev/pts
mount -t tmpfs -o mode=1777 tmp /tmp
mount -t tmpfs run /run
mount -t cgroup2 cgroup2 /sys/fs/cgroup
sed 's/[^ ]*/+&/g' /sys/fs/cgroup/cgroup.controllers >/sys/fs/cgroup/cgroup.subtree_control
ip link set lo up
ulimit -n 65536
failed=0
for p in $*; do
	cd /tests/\$p
	echo "=== \$p"
	./tests -test.v -test.timeout ${limit}s </dev/null || failed=1
done
echo "exit code \$failed"
echo o >/proc/sysrq-trigger
sleep 60
X
chmod 755 "$root/init"
(cd "$root" && find . | cpio --quiet -o -H newc) >"$tmp/initrd"
start=$SECONDS
: >"$tmp/console"
timeout -k 5 "$limit" qemu-system-aarch64 -accel tcg -M virt -cpu cortex-a57 -smp 1 -m 3072 \
	-nodefaults -nographic -no-reboot -nic none -serial "file:$tmp/console" \
	-kernel "$dir/vmlinuz" -initrd "$tmp/initrd" -append "console=ttyAMA0 quiet panic=-1 mitigations=off" \
	</dev/null >>"$tmp/log" 2>&1 &
qemu=$!
wait "$qemu" || :
qemu=''
tr -d '\r' <"$tmp/console" >"$tmp/output"
count() { grep -cE "^ *--- $1" "$tmp/output" || :; }
status=1
! grep -qx 'exit code 0' "$tmp/output" || status=0
[ $status = 0 ] || cat "$tmp/log" "$tmp/output" >&2
printf 'arm64: %s passed, %s failed, %s skipped, %s s, exit code %s\n' \
	"$(count PASS)" "$(count FAIL)" "$(count SKIP)" "$((SECONDS - start))" "$status"
exit $status
