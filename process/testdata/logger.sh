#!/bin/sh
# A logging program for tests. Its argument pair "dir DIR" says where it writes
# what it gets: out, err, and id. With "die now" it ends before it is ready, with
# "sign no" it becomes ready without a byte on descriptor 5.
dir=/nonexistent die='' sign=yes
while [ $# -gt 1 ]; do
	case $1 in
	dir) dir=$2 ;;
	die) die=$2 ;;
	sign) sign=$2 ;;
	esac
	shift 2
done
[ -z "$die" ] || exit 3

# What is in the pipes when the process has ended is still to be written.
trap '' TERM
echo "$CONTAINER_NAMESPACE/$CONTAINER_ID" >"$dir/id"
cat <&3 >"$dir/out" 4<&- 5>&- &
cat <&4 >"$dir/err" 3<&- 5>&- &
exec 3<&- 4<&-
[ "$sign" = no ] || printf x >&5
exec 5>&-
wait
touch "$dir/ended"
