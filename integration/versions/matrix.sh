#!/bin/bash
# matrix.sh - run the tests of this directory with releases of containerd, and write docs/containerd-versions.md.
#
# usage: matrix.sh [-b DIR] [MINOR...]
#   MINOR    such as 1.6 or 2.4; all releases in DIR/tools if none is named
#   -b DIR   where the build is, default bin; DIR/matrix/MINOR.json keeps what `go test -json` has printed
#
# With all releases the table is new; with some, the rows of the others are those of the runs before.
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")/../.."
bin=$PWD/bin
while getopts b: o; do
	case $o in b) bin=$(readlink -f "$OPTARG") ;; *) exit 2 ;; esac
done
shift $((OPTIND - 1))
go=${GO:-go}
results=$bin/matrix

mkdir -p "$results"
if [ $# = 0 ]; then
	rm -f "$results"/[0-9]*.json
	mapfile -t all < <(cd "$bin/tools" && printf '%s\n' containerd-[0-9]* | sed 's/^containerd-//' | sort -V)
	set -- "${all[@]}"
fi
for minor; do
	start=$SECONDS
	printf 'matrix: containerd %s ... ' "$minor"
	# A failure is in the results.
	PAUSE_TEST_PATH=$bin:$bin/tools PAUSE_TEST_CONTAINERDS=$minor \
		"$go" -C integration test -json -count=1 -timeout 30m ./versions >"$results/$minor.json" || printf 'failed, '
	echo "$((SECONDS - start)) s"
done

rows=()
for file in $(printf '%s\n' "$results"/[0-9]*.json | sort -V); do
	minor=$(basename "$file" .json)
	rows+=("$("$bin/tools/containerd-$minor/containerd" --version | awk '{ sub("^v", "", $3); print $3 }')=$file")
done
runc=$(runc --version | awk 'NR == 1 { print $3 }')
"$go" -C integration run ./matrix -into ../docs/containerd-versions.md -by 'make matrix' -with "runc $runc" -head containerd \
	-column 'ctr run=/ctr_run/[^/]*/pause$' \
	-column 'podsandbox pod=/podsandbox/[^/]*/pause$' \
	-column 'Sandbox API pod=/Sandbox_API/[^/]*/pause-sandbox$' \
	-column 'upgrade in place=/upgrade/.*/pause$' \
	-column 'shim replaced=/shim_replaced/[^/]*/pause(-sandbox)?$' \
	-column 'shared shim, all of these=/pause-shared(-sandbox|-one)?$' \
	-column 'stock shim, the same tests=/runc$' \
	"${rows[@]}"
