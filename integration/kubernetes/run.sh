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

cd integration
code=0
# Most of a scenario is waiting: more run at a time than there are processors.
PAUSE_TEST_PATH=${PAUSE_TEST_PATH:-$bin:$bin/tools} \
	"$go" test -v -count=1 -timeout 60m -parallel 8 "$@" ./kubernetes 2>&1 | tee "$results.log" || code=$?
"$go" tool test2json <"$results.log" >"$results.json"
echo
"$go" run ./matrix -split -head scenario ${document:+-into "$document"} -by 'make kubernetes' "${columns[@]}" "Kubernetes=$results.json" || code=$?
exit "$code"
