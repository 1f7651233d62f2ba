#!/bin/sh
# Writes a go.mod, for `go build -modfile`, in which stand-ins replace some modules, and
# the stand-ins beside it: standins.sh [-g GO] DIRECTORY
#
# Generated code of protobuf messages registers itself when a program starts: 0.4 ms each time,
# and 280 kB for good. The shim encodes and decodes messages by shim/wire, from the tags of structs
# alone. So it is built with copies of the modules below, made out of what is in the module cache:
#
#	containerd/api            one type, which containerd's package mount imports for two functions that nothing calls
#	cgroups/v3                the types of metrics, as they are generated, without the rest
#	ttrpc                     its messages are encoded and decoded by shim/wire
#	protobuf, genproto/rpc    the messages that are left (Any, Timestamp, Empty, Status) register themselves when the
#	                          first one is looked into, which takes an error with details; and protobuf does not
#	                          read the program's file to make its texts unpredictable
#	grpc                      its status codes do not import the package that sets up gRPC's logging, and the copy of a
#	                          Status for each error that is answered is made without looking into it
#
# Whatever else would need the first two does not build. Where a version of the others has not just the lines that are to
# be changed, it is used as it is. `go version -m` names all of them with the versions that they are made of.
set -eu

go=go
if [ "$1" = -g ]; then
	go=$2
	shift 2
fi
root=$1
program=./cmd/containerd-shim-pause-v2
dir=$root/standins
mkdir -p "$dir"
# In what is below this directory the program does not name where it was built.
case $dir in
"$PWD"/*) relative=.${dir#"$PWD"} ;;
*) relative=$dir ;;
esac

directory() { $go list -m -f '{{.Dir}}' "$1"; }

# replace MODULE: let the stand-in be used.
replace() { $go mod edit -replace "$1=$relative/$1" "$root/go.mod.new"; }

# changed FILE LINES SED-EXPRESSIONS: change a file; false, and it stays as it is, unless that takes away and adds so
# many lines together.
changed() {
	file=$1
	lines=$2
	shift 2
	sed "$@" "$file" >"$file.new"
	if [ "$(diff "$file" "$file.new" | grep -c '^[<>]')" != "$lines" ]; then
		rm "$file.new"
		return 1
	fi
	mv "$file.new" "$file"
}

# copy MODULE: copy what the program uses of a module.
copy() {
	from=$(directory "$1")
	rm -rf "${dir:?}/$1"
	mkdir -p "$dir/$1"
	cp "$from/go.mod" "$dir/$1/"
	echo "$packages" | while read -r path package; do
		case $path/ in
		"$from"/*)
			mkdir -p "$dir/$1${path#"$from"}"
			find "$path" -maxdepth 1 -type f ! -name '*_test.go' -exec cp {} "$dir/$1${path#"$from"}/" \;
			;;
		esac
	done
	chmod -R u+w "$dir/$1"
}

# lazy FILE: let generated code register itself when a message, of which it has one, is looked into.
lazy() {
	init=$(sed -n 's/^func init() { \(file_[a-z_]*_init\)() }$/\1/p' "$1")
	[ -n "$init" ] && changed "$1" 3 \
		-e "s/^func init() { $init() }\$/var registered sync.Once/" \
		-e "s/^func (x \*[A-Za-z]*) ProtoReflect() protoreflect.Message {\$/&\n\tregistered.Do($init)/"
}

# write_ttrpc_messages writes the messages in the file $generated, as wire knows them.
write_ttrpc_messages() {
	cat <<-'END'
		package ttrpc

		import (
			"google.golang.org/genproto/googleapis/rpc/status"
			"google.golang.org/protobuf/reflect/protoreflect"

			"containerd-shim-pause-v2/shim/wire"
		)
	END
	sed -n -e '/^type .* struct {/,/^}/{/protoimpl\./d;p}' -e '/^func (x \*[A-Za-z]*) Get/,/^}/p' "$generated"
	sed -n 's/^type \(.*\) struct {$/func (x *\1) Reset() { *x = \1{} }\n\nfunc (x *\1) ProtoReflect() protoreflect.Message { return wire.Message(x).ProtoReflect() }\n/p' "$generated"
}

as_it_is() { echo "build: $1 is used as it is: the shim will need more memory and time" >&2; }

cp go.mod "$root/go.mod.new"
packages=$($go list -tags no_grpc -deps -f '{{.Dir}} {{.ImportPath}}' "$program")

module=github.com/containerd/containerd/api
mkdir -p "$dir/$module/types"
printf 'module %s\n\ngo 1.24\n' "$module" >"$dir/$module/go.mod"
printf 'package types\n\ntype Mount struct {\n\tType, Source, Target string\n\tOptions []string\n}\n' >"$dir/$module/types/mount.go"
replace $module

module=github.com/containerd/cgroups/v3
mkdir -p "$dir/$module"
printf 'module %s\n\ngo 1.24\n' "$module" >"$dir/$module/go.mod"
for v in 1 2; do
	stats=$dir/$module/cgroup$v/stats
	mkdir -p "$stats"
	{
		echo 'package stats'
		sed -n '/^type .* struct {/,/^}/{/protoimpl\./d;p}' "$(directory $module)/cgroup$v/stats/metrics.pb.go"
	} >"$stats/metrics.go"
done
replace $module

module=github.com/containerd/ttrpc
copy $module
generated=$dir/$module/request.pb.go
if [ "$(grep -c '^type .* struct {' "$generated")" != 4 ] || grep -qE 'protobuf_oneof|xxx_hidden' "$generated"; then
	as_it_is $module
else
	write_ttrpc_messages >"$generated.new"
	mv "$generated.new" "$generated"
	replace $module
fi

module=google.golang.org/protobuf
copy $module
if lazy $dir/$module/types/known/anypb/any.pb.go && lazy $dir/$module/types/known/timestamppb/timestamp.pb.go &&
	lazy $dir/$module/types/known/emptypb/empty.pb.go &&
	changed $dir/$module/internal/detrand/rand.go 2 's/^var randSeed = binaryHash()$/var randSeed uint64/'; then
	replace $module
else
	as_it_is $module
fi

module=google.golang.org/genproto/googleapis/rpc
copy $module
if lazy $dir/$module/status/status.pb.go; then replace $module; else as_it_is $module; fi

module=google.golang.org/grpc
copy $module
status='{Code: s.GetCode(), Message: s.GetMessage(), Details: s.GetDetails()}'
if changed $dir/$module/internal/status/status.go 4 -e "s/proto\.Clone(s)\.(\*spb\.Status)/\&spb.Status$status/" \
	-e "s/proto\.Clone(s\.s)\.(\*spb\.Status)/\&spb.Status$(echo "$status" | sed 's/s\.Get/s.s.Get/g')/" &&
	changed $dir/$module/codes/code_string.go 2 -e '/"google.golang.org\/grpc\/internal"$/d' -e '/^	internal\.CanonicalString = canonicalString$/d'; then
	replace $module
else
	as_it_is $module
fi

cp go.sum "$root/go.sum"
mv "$root/go.mod.new" "$root/go.mod"
