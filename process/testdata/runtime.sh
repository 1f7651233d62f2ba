#!/bin/sh
# A small OCI runtime with the command line of runc, for tests. Its containers
# have a process and a cgroup, but no namespaces and no root file system; the
# first of a process's args is the path of a shell script.
#
# Files beside it, where VERB is a command:
#
#   calls       gets a line "VERB ID" for each call
#   fail-VERB   fail at once; the text is the message
#   late-VERB   fail when all has been done
#   hang-VERB   never return
#   killed-VERB be killed, once
#   gate-VERB   a fifo: go on when somebody has opened it for writing
#   slow-VERB   return when the process that was made or started has ended
#   no-seccomp  refuse a spec with seccomp, and say so in the features
#
# A container that is run at once (run) is real in two ways: its program is
# executed, from its root directory, as the init of a PID namespace.
set -eu

here=$(dirname "$0")
log=/dev/null root='' bundle='' pidfile='' process='' images='' work='' force=''
verb=''
while [ $# -gt 0 ]; do
	case $1 in
	--root) root=$2; shift ;;
	--log) log=$2; shift ;;
	--bundle) bundle=$2; shift ;;
	--pid-file) pidfile=$2; shift ;;
	--process) process=$2; shift ;;
	--image-path) images=$2; shift ;;
	--work-path) work=$2; shift ;;
	--log-format | --parent-path) shift ;;
	--force) force=1 ;;
	-*) ;;
	*) if [ -z "$verb" ]; then verb=$1; else id=$1; fi ;;
	esac
	shift
done

die() {
	printf '{"level":"warning","msg":"not this one"}\n{"level":"error","msg":"%s"}\nno JSON\n' "$1" >>"$log"
	exit 1
}

alive() {
	[ -d "/proc/$1" ] && ! grep -q '^State:.Z' "/proc/$1/status" 2>/dev/null
}

args() { sed -n 's/.*"args":\["\([^"]*\)".*/\1/p' "$1"; }

root_path() { sed -n 's/.*"root":{"path":"\([^"]*\)".*/\1/p' "$1"; }

cgroups() {
	path=$(sed -n 's/.*"cgroupsPath":"\([^"]*\)".*/\1/p' "$1")
	[ -n "$path" ] || return 0
	if [ -e /sys/fs/cgroup/cgroup.controllers ]; then
		echo "/sys/fs/cgroup$path"
		return
	fi
	for controller in freezer pids memory; do
		echo "/sys/fs/cgroup/$controller$path"
	done
}

# enter moves the shell that calls it into the container's cgroup, then lets the
# one that waits for it by entered go on.
enter() {
	while read -r dir; do
		mkdir -p "$dir"
		echo 0 >"$dir/cgroup.procs"
	done <"$state/cgroups"
	echo >"$state/entered-$$"
}

entered() {
	read -r _ <"$state/entered-$$" || :
	rm "$state/entered-$$"
}

# made tells the pid of a process in the way that the caller asked for.
made() {
	printf %s "$1" >"$pidfile"
	[ ! -e "$here/late-$verb" ] || die "$(cat "$here/late-$verb")"
	[ ! -e "$here/slow-$verb" ] || await "$1"
}

await() {
	while alive "$1"; do sleep 0.01; done
}

make() {
	[ ! -e "$state" ] || die "container with given ID already exists"
	mkdir -p "$state"
	cgroups "$bundle/config.json" >"$state/cgroups"
	script=$(args "$bundle/config.json")
	mkfifo "$state/start" "$state/entered-$$"
	# Open for both directions, so that start never waits for the init.
	exec 8<>"$state/start" 9<&0
	# A shell between, so that this one is no parent who could reap.
	(
		(
			enter
			[ "$verb" = restore ] || read -r _ <&8
			exec 8<&- sh "$script"
		) <&9 9<&- &
		echo $! >"$state/pid"
	)
	entered
	made "$(cat "$state/pid")"
}

run_init() {
	[ ! -e "$state" ] || die "container with given ID already exists"
	config=$bundle/config.json
	if [ -e "$here/no-seccomp" ] && grep -q '"seccomp"' "$config"; then
		die "seccomp is not supported"
	fi
	mkdir -p "$state"
	cgroups "$config" >"$state/cgroups"
	mkfifo "$state/entered-$$" "$state/init"
	# The first child of a process that has unshared its PID namespace is the init.
	(
		enter
		exec unshare --pid sh -c '"$1" & echo $! >"$2"' sh "$(root_path "$config")$(args "$config")" "$state/init"
	) &
	entered
	read -r pid <"$state/init"
	wait
	echo "$pid" >"$state/pid"
	made "$pid"
}

remove() {
	if [ -z "$force" ] && alive "$(cat "$state/pid")"; then
		die "cannot delete container $id that is not stopped"
	fi
	kill -9 "$(cat "$state/pid")" 2>/dev/null || :
	while read -r dir; do
		while procs=$(cat "$dir/cgroup.procs" 2>/dev/null) && [ -n "$procs" ]; do
			kill -9 $procs 2>/dev/null || :
		done
		rmdir "$dir" 2>/dev/null || :
	done <"$state/cgroups"
	rm -rf "$state"
}

if [ "$verb" = features ]; then
	enabled=true
	[ ! -e "$here/no-seccomp" ] || enabled=false
	echo '{"ociVersionMin":"1.0.0","ociVersionMax":"1.2.0","linux":{"seccomp":{"enabled":'$enabled'}}}'
	exit
fi
state=$root/$id
echo "$verb $id" >>"$here/calls"
[ ! -e "$here/fail-$verb" ] || die "$(cat "$here/fail-$verb")"
[ ! -e "$here/hang-$verb" ] || exec sleep 100000
[ ! -e "$here/killed-$verb" ] || { rm "$here/killed-$verb"; kill -9 $$; }
[ ! -e "$here/gate-$verb" ] || cat "$here/gate-$verb" >/dev/null

case $verb in
create | restore)
	# What the path of the network namespace leads to at this moment.
	net=$(sed -n 's/.*"type":"network","path":"\([^"]*\)".*/\1/p' "$bundle/config.json")
	[ -z "$net" ] || stat -Lc %i "$net" >"$here/net"
	make
	;;
run) run_init ;;
start)
	alive "$(cat "$state/pid")" || die "cannot start an already stopped container"
	echo go 1<>"$state/start"
	[ ! -e "$here/slow-start" ] || await "$(cat "$state/pid")"
	;;
exec)
	alive "$(cat "$state/pid")" || die "cannot exec in a stopped container"
	script=$(args "$process")
	[ ! -e "$here/gate-enter" ] || cat "$here/gate-enter" >/dev/null
	exec 8>&1 9<&0
	mkfifo "$state/entered-$$"
	pid=$(
		(
			enter
			exec sh "$script"
		) <&9 >&8 9<&- 8>&- &
		echo $!
	)
	entered
	made "$pid"
	;;
update) cat >"$here/resources" ;;
checkpoint) # as crun, which makes no directories on the way
	[ -d "$work" ] || die "no work directory"
	[ -d "$images" ] || mkdir "$images"
	;;
delete)
	[ -d "$state" ] || die "container does not exist"
	remove
	;;
*) die "unknown command $verb" ;;
esac
[ ! -e "$here/late-$verb" ] || die "$(cat "$here/late-$verb")"
