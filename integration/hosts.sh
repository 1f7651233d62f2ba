#!/bin/bash
# hosts.sh - run tests on a kind of host, with an OCI runtime.
#
# usage: hosts.sh [-b DIR] [-j DIR] [-t SECS] [-P PACKAGE]... HOST RUNTIME [ARG...]
#   HOST     here         this machine as it is
#            v1           this machine, with cgroup v1 alone (it must have v1 controllers; a cgroup2 mount beside
#                         them is hidden from the tests)
#            v2           a guest with cgroup v2 (see guest/run)
#            v2-systemd   a guest with systemd, which makes the cgroups of containers
#   RUNTIME  runc (Debian 12's), runc-current, or crun (Debian 13's)
#   ARG      arguments of the tests of integration, such as -test.run=TestExec
#   -P PACKAGE  the package whose tests are run, by its directory; by default integration (may be repeated)
#   -b DIR   where the build is, default bin       -t SECS  time limit, default 3600
#   -j DIR   keep results as JSON there, in HOST.RUNTIME.json, for the tables of `make matrix`
#
# The output is shown if a test fails; otherwise there is a line a minute, and one that says how many passed.
# PAUSE_TEST_SHIMS says which shims are tested, by default this project's only, by both of its names.
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")/.."
top=$PWD bin=$PWD/bin results='' limit=3600 packages=()
while getopts b:j:t:P: o; do
	case $o in
	b) bin=$(readlink -f "$OPTARG") ;; j) results=$OPTARG ;; t) limit=$OPTARG ;; P) packages+=("$OPTARG") ;;
	*) exit 2 ;;
	esac
done
shift $((OPTIND - 1))
[ $# -ge 2 ] || { sed -n '2,/^set/s/^# \{0,1\}//p' "$0" >&2; exit 2; }
host=$1 runtime=$2
shift 2
case $host in here | v1 | v2 | v2-systemd) ;; *) echo "hosts: no such host: $host" >&2; exit 2 ;; esac
case $runtime in runc | runc-current | crun) ;; *) echo "hosts: no such OCI runtime: $runtime" >&2; exit 2 ;; esac
[ ${#packages[@]} -gt 0 ] || packages=(integration)
for p in "${packages[@]}"; do
	[ -x "$bin/tests/${p##*/}.test" ] || { echo "hosts: no tests of $p in $bin/tests: see make test-binaries" >&2; exit 2; }
done

tmp=$(mktemp -d)
progress='' tests=''
cleanup() {
	[ -z "$progress" ] || kill "$progress" 2>/dev/null || :
	# A guest, or the tests, that a signal has left.
	[ -z "$tests" ] || { kill -- "-$tests" && wait "$tests"; } 2>/dev/null || :
	rm -rf "$tmp"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
log=$tmp/log
: >"$log"
export PAUSE_TEST_SHIMS=${PAUSE_TEST_SHIMS:-pause,pause-shared} PAUSE_TEST_RUNTIME=$runtime

# commands TOP BIN ARG...: shell commands that run the tests of all packages, each from its directory.
commands() {
	local top=$1 tests=$2 p
	shift 2
	echo 'failed=0'
	for p in "${packages[@]}"; do
		printf 'cd %q && %q -test.v -test.timeout %ss' "$top/$p" "$tests/${p##*/}.test" "$limit"
		[ "$p" != integration ] || [ $# = 0 ] || printf ' %q' "$@"
		echo ' || failed=1'
	done
	echo 'exit $failed'
}

# on_this_machine WRAPPER...: crun is the guest's there as well.
on_this_machine() (
	mkdir "$tmp/cgroup"
	[ "$runtime" != crun ] || export PAUSE_TEST_RUNTIME=$bin/guest/crun/crun
	PAUSE_TEST_PATH=$bin:$bin/tools exec "$@" sh -c "$(commands "$top" "$bin/tests" "${args[@]}")"
)

# crun refuses hybrid hosts, and where the cgroup2 mount is merely gone it makes directories in its place. A mount
# namespace of its own, with the v1 hierarchies alone, leaves the machine's mounts alone.
on_v1() {
	# shellcheck disable=SC2016 # for the shell that it is given to
	on_this_machine unshare --mount --propagation private sh -ec '
		mount -t tmpfs -o mode=755 cgroup "$0"
		for m in $(awk '\''$3 == "cgroup" { print $2 }'\'' /proc/self/mounts); do
			mkdir "$0/${m##*/}"
			mount --bind "$m" "$0/${m##*/}"
		done
		mount -o remount,ro "$0"
		mount --move "$0" /sys/fs/cgroup
		exec "$@"' "$tmp/cgroup"
}

in_guest() {
	local flags=(-c 1 -t "$limit" -p "$tmp/payload" -d "$bin/guest") driver=cgroupfs
	[ "$1" != systemd ] || { flags+=(-s); driver=systemd; }
	stage
	exec integration/guest/run "${flags[@]}" -e PAUSE_TEST_PATH=/payload/bin:/payload/bin/tools -e PAUSE_TEST_RUNTIME \
		-e PAUSE_TEST_SHIMS -e PAUSE_TEST_CGROUPS=$driver -e PAUSE_TEST_PATIENCE=5 \
		-- sh -c "$(commands /payload /payload/tests "${args[@]}")"
}

# stage lays out for the guest what a checkout with its build has, as far as the tests need it.
stage() {
	local p
	mkdir -p "$tmp/payload/bin/tools" "$tmp/payload/tests"
	cp -a README.md go.mod "$tmp/payload"
	# The second is a link to the first.
	cp -a "$bin"/containerd-shim-pause{,-shared}-v2 "$tmp/payload/bin"
	for p in "${packages[@]}"; do
		mkdir -p "$tmp/payload/$p"
		cp -a "$bin/tests/${p##*/}.test" "$tmp/payload/tests"
		[ ! -e "$p/testdata" ] || cp -a "$p/testdata" "$tmp/payload/$p"
	done
	find "$bin/tools" -maxdepth 1 -type f -perm -100 ! -name 'golangci-lint*' -exec cp -a -t "$tmp/payload/bin/tools" {} +
	cp -aL "$(PATH=$PATH:/usr/sbin command -v runc)" "$tmp/payload/bin/tools"
}

count() { grep -cE "^ *--- $1" "$log" || :; }
report() {
	printf 'hosts: %s, %s: %s passed, %s failed, %s skipped, %s s%s\n' "$host" "$runtime" \
		"$(count PASS)" "$(count FAIL)" "$(count SKIP)" "$((SECONDS - start))" "$1"
}
args=("$@") start=$SECONDS status=0
while sleep 60; do report ", now $(grep -E '^=== RUN' "$log" | tail -n 1 | cut -c11-)"; done &
progress=$!
set -m # so that the tests are a process group, to be ended as one
case $host in
here) on_this_machine env ;;
v1) on_v1 ;;
v2) in_guest cgroupfs ;;
v2-systemd) in_guest systemd ;;
esac >"$log" 2>&1 &
tests=$!
set +m
wait $tests || status=$?
tests=''
kill $progress
if [ -n "$results" ]; then
	mkdir -p "$results"
	"${GO:-go}" tool test2json -t -p integration <"$log" >"$results/$host.$runtime.json"
fi
[ $status = 0 ] || cat "$log" >&2
report ", exit code $status"
exit $status
