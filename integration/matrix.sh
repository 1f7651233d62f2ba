#!/bin/bash
# matrix.sh - run the integration tests on all kinds of hosts with all OCI runtimes, and write docs/hosts.md.
#
# usage: matrix.sh [-b DIR] [-g REGEXP] [-w COMMAND] [HOST.RUNTIME...]
#   HOST.RUNTIME  such as v2-systemd.crun, see hosts.sh; all if none is named
#   -g REGEXP     run only these tests in guests
#   -w COMMAND    the command that the document names, default make matrix
#   -b DIR        where the build is, default bin; DIR/matrix/hosts/HOST.RUNTIME.json keeps the results
#
# With all the table is new; with some, the rows of the others are those of the runs before. Guests run two at a time:
# each has one processor.
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")/.."
bin=$PWD/bin
args=() by='make matrix'
while getopts b:g:w: o; do
	case $o in
	b) bin=$(readlink -f "$OPTARG") ;; g) args=("-test.run=$OPTARG") ;; w) by=$OPTARG ;;
	*) exit 2 ;;
	esac
done
shift $((OPTIND - 1))
go=${GO:-go}
results=$bin/matrix/hosts
runtimes=(runc runc-current crun)

here=()
[ -d /sys/fs/cgroup/memory ] && here=(v1) # a v1 hierarchy, cgroups(7)
mkdir -p "$results"
if [ $# = 0 ]; then
	rm -f "$results"/*.json
	for host in "${here[@]}" v2 v2-systemd; do
		for runtime in "${runtimes[@]}"; do set -- "$@" "$host.$runtime"; done
	done
fi

# A failure is in the results.
run() { integration/hosts.sh -b "$bin" -j "$results" -t 20000 "${1%%.*}" "${1#*.}" "${@:2}" 2>"$results/$1.log" || :; }
for cell; do
	case $cell in
	v1.*) run "$cell" ;;
	*)
		while [ "$(jobs -r | wc -l)" -ge 2 ]; do wait -n || :; done
		run "$cell" "${args[@]}" &
		;;
	esac
done
wait

# name HOST.RUNTIME: the label of its row.
name() {
	local host runtime
	case ${1%%.*} in
	v1) host='cgroup v1' ;; v2) host='cgroup v2, cgroupfs' ;; v2-systemd) host='cgroup v2, systemd' ;;
	esac
	case ${1#*.} in
	runc) runtime="runc $(runc --version | awk 'NR == 1 { print $3 }')" ;;
	runc-current) runtime="runc $("$bin/tools/runc-current" --version | awk 'NR == 1 { print $3 }')" ;;
	crun) runtime="crun $("$bin/guest/crun/crun" --version | awk 'NR == 1 { print $3 }')" ;;
	esac
	echo "$host; $runtime"
}
rows=()
for host in v1 v2 v2-systemd; do
	for runtime in "${runtimes[@]}"; do
		file=$results/$host.$runtime.json
		[ ! -e "$file" ] || rows+=("$(name "$host.$runtime")=$file")
	done
done
"$go" -C integration run ./matrix -into ../docs/hosts.md -by "$by" -head 'host; OCI runtime' \
	-column 'podsandbox, and plain containers=/pause(/|$)' -column 'Sandbox API=/pause-sandbox(/|$)' \
	-column 'shared shim, all of these=/pause-shared(-sandbox)?(/|$)' "${rows[@]}"
