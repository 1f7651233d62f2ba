#!/bin/bash
# run.sh - run the scenarios of Kubernetes, and show them as a table: a row for each, a column for each handler.
#
# usage: run.sh [-b DIR] [-o FILE] [-- ARG...]
#   ARG      arguments of go test, such as -run TestExec
#   -b DIR   where the build is, default bin; DIR/matrix/kubernetes.json keeps the results
#   -o FILE  write the table into this document as well
#
# PAUSE_TEST_HANDLERS narrows the handlers, see main_test.go.
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")/../.."
bin=$PWD/bin document=''
while getopts b:o: o; do
	case $o in b) bin=$(readlink -f "$OPTARG") ;; o) document=$(readlink -f "$OPTARG") ;; *) exit 2 ;; esac
done
shift $((OPTIND - 1))
go=${GO:-go}
results=$bin/matrix/kubernetes
mkdir -p "$bin/matrix"
columns=()
handlers=${PAUSE_TEST_HANDLERS:-runc,pause,pause-path,pause-sandbox,pause-shared,pause-shared-sandbox}
for handler in ${handlers//,/ }; do columns+=(-column "$handler=/$handler(/|\$)"); done

args=()
for arg; do args+=("${arg/#-/-test.}"); done
cd integration
"$go" test -c -o "$bin/tests/kubernetes.test" ./kubernetes
# Most of a scenario is waiting: more run at a time than there are processors. It is no child of `go test`, which does
# not pass on a signal that ends it.
(
	cd kubernetes
	export PAUSE_TEST_PATH=${PAUSE_TEST_PATH:-$bin:$bin/tools}
	exec "$bin/tests/kubernetes.test" -test.v -test.timeout 60m -test.parallel 8 "${args[@]}"
) > >(tee "$results.log") 2>&1 &
tests=$!
trap 'kill "$tests"' INT TERM
code=0
wait "$tests" || code=$?
if [ "$code" -gt 128 ]; then # by a signal to this script; the tests are about to end
	wait "$tests" || exit "$code"
fi
"$go" tool test2json <"$results.log" >"$results.json"
echo
"$go" run ./matrix -split -head scenario ${document:+-into "$document"} -by 'make kubernetes' "${columns[@]}" "Kubernetes=$results.json" || code=$?
exit "$code"
