#!/bin/bash
# setup.sh - install and build what the demo and the tests need, if it is missing.
#
# usage: setup.sh [-t DIR] PART...
#   packages  Debian packages: OCI runtimes, CNI plugins, busybox, criu, a C compiler (needs root)
#   tools     containerd, ctr, the stock shim, crictl and a current runc, built by the Go toolchain into DIR
#   guest     the disk of a guest with cgroup v2, into the directory guest beside DIR (needs root)
#   lint      golangci-lint, likewise
#   vulncheck govulncheck, likewise
#   kubernetes     etcd and the programs of a Kubernetes cluster, likewise: a quarter of an hour from nothing
#   kubernetes-e2e the test program of Kubernetes itself, likewise
#   containerds [MINOR...]
#             containerd, ctr and the stock shim of other versions, such as 1.6 or 2.0, into DIR/containerd-MINOR;
#             all versions if none is named. 1.6 is Debian 12's package, unpacked and not installed
# DIR is bin/tools by default. A tool of the right version in DIR is not built again.
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")/.."
tools=$PWD/bin/tools
while getopts t: o; do
	case $o in t) tools=$(readlink -m "$OPTARG") ;; *) exit 2 ;; esac
done
shift $((OPTIND - 1))
[ $# -gt 0 ] || { sed -n '2,/^set/s/^# \{0,1\}//p' "$0" >&2; exit 2; }

go=${GO:-go}
crictl_version=v1.36.0
runc_version=v1.5.2
lint_version=v2.15.0
vulncheck_version=v1.9.0
kubernetes_version=v1.37.2
etcd_version=v3.7.3
coredns_version=v1.15.0
# The newest of each minor version by `go list -m -versions`, but for those of Debian and of go.mod.
declare -A containerd_versions=(
	[1.6]=debian [1.7]=v1.7.35 [2.0]=v2.0.14 [2.1]=v2.1.9 [2.2]=v2.2.9 [2.3]=v2.3.7 [2.4]=go.mod
)

# quietly WHAT COMMAND...: says what is done and how long it took; shows the command's output if it fails.
quietly() {
	local what=$1 log start=$SECONDS
	shift
	log=$(mktemp)
	printf 'setup: %s ... ' "$what"
	if "$@" >"$log" 2>&1; then
		echo "$((SECONDS - start)) s"
		rm -f "$log"
		return
	fi
	echo failed
	cat "$log" >&2
	rm -f "$log"
	return 1
}

# A program in /usr/sbin is there even if PATH does not say so.
have() { PATH=$PATH:/usr/sbin:/sbin command -v "$1" >/dev/null; }
static_busybox() { have busybox && ! ldd "$(command -v busybox)" >/dev/null 2>&1; }

packages() {
	local missing=()
	have runc || missing+=(runc)
	have crun || missing+=(crun)
	[ -x /opt/cni/bin/bridge ] || [ -x /usr/lib/cni/bridge ] || missing+=(containernetworking-plugins)
	have iptables || missing+=(iptables)
	static_busybox || missing+=(busybox-static)
	have ip || missing+=(iproute2)
	have criu || missing+=(criu)
	# The race detector needs cgo; the stock pause program is written in C, and part of runc.
	{ have gcc && [ -e /usr/include/stdlib.h ]; } || missing+=(gcc libc6-dev)
	{ have pkg-config && [ -e /usr/include/seccomp.h ]; } || missing+=(pkg-config libseccomp-dev)
	install_packages "${missing[@]}"
}

# install_packages NAME...: of Debian.
install_packages() {
	local missing=("$@")
	[ ${#missing[@]} -gt 0 ] || return 0
	[ "$(id -u)" = 0 ] || { echo "setup: run as root, or install: ${missing[*]}" >&2; return 1; }
	have apt-get || { echo "setup: not Debian; install: ${missing[*]}" >&2; return 1; }
	export DEBIAN_FRONTEND=noninteractive
	local get=(apt-get install -y -q --no-install-recommends "${missing[@]}")
	# The lists may be older than the mirror, or absent.
	"${get[@]}" --download-only >/dev/null 2>&1 || quietly "apt-get update" apt-get update -q
	quietly "apt-get install ${missing[*]}" "${get[@]}"
}

# guest makes the disk of the guest beside the tools.
guest() {
	local missing=() dir
	dir=$(dirname "$tools")/guest
	have qemu-system-x86_64 || missing+=(qemu-system-x86)
	have qemu-system-aarch64 || missing+=(qemu-system-arm)
	have debootstrap || missing+=(debootstrap)
	have mke2fs || missing+=(e2fsprogs)
	have patchelf || missing+=(patchelf)
	have cpio || missing+=(cpio)
	have modprobe || missing+=(kmod)
	have xz || missing+=(xz-utils)
	install_packages "${missing[@]}"
	integration/guest/root.sh -n "$dir" || quietly "make the guest's disk: Debian 13" integration/guest/root.sh "$dir"
}

# build NAME MODULE VERSION LDFLAGS PROGRAM...: builds programs of a module in its directory cmd,
# or by compile_NAME. A stamp in DIR says which version is there.
build() {
	local name=$1 version=$3 stamp p compile=compile
	! declare -F "compile_$name" >/dev/null || compile=compile_$name
	stamp=$tools/.$name-$version
	for p in "${@:5}"; do
		[ -x "$tools/$p" ] || rm -f "$stamp"
	done
	[ ! -e "$stamp" ] || return 0
	mkdir -p "$tools"
	rm -f "$tools/.$name-"*
	quietly "build $name $version" "$compile" "${@:2}"
	touch "$stamp"
}

# compile MODULE VERSION LDFLAGS PROGRAM...: as `go install MODULE/cmd/PROGRAM@VERSION`.
compile() {
	local module=$1 version=$2 ldflags=$3
	shift 3
	CGO_ENABLED=0 in_module "$module" "$version" -trimpath -ldflags "-s -w $ldflags" -o "$tools/" "${@/#/$module/cmd/}"
}

# compile_runc MODULE VERSION LDFLAGS PROGRAM: runc is not below cmd, needs cgo, and gets a name
# that keeps it apart from the distribution's.
compile_runc() {
	CGO_ENABLED=1 in_module "$1" "$2" -trimpath -tags seccomp -ldflags "-s -w $3" -o "$tools/$4" "$1"
}

# in_module MODULE VERSION ARGS...: `go build ARGS...` in a module of its own that requires MODULE,
# which needs nothing from the proxy but the files of this version.
in_module() (
	module=$1 version=$2
	shift 2
	dir=$(mktemp -d)
	trap 'rm -rf "$dir"' EXIT
	cd "$dir"
	export GOFLAGS=-mod=mod
	"$go" mod init setup
	"$go" mod edit -require "$module@$version"
	"$go" build "$@"
)

# build_kubernetes builds what runs a cluster, its DNS, and agnhost, the program of Kubernetes' own test image.
build_kubernetes() {
	local module=k8s.io/kubernetes
	build etcd go.etcd.io/etcd/server/v3 $etcd_version '' etcd
	build kubernetes $module $kubernetes_version '' \
		kubelet kube-apiserver kube-controller-manager kube-scheduler kube-proxy kubectl agnhost
	build coredns github.com/coredns/coredns $coredns_version '' coredns
}

# compile_coredns MODULE VERSION LDFLAGS PROGRAM: the program is ours, of the module's packages.
compile_coredns() (
	source=$PWD/integration/kubernetes/coredns/main.go
	dir=$(mktemp -d)
	trap 'rm -rf "$dir"' EXIT
	cd "$dir"
	export GOFLAGS=-mod=mod CGO_ENABLED=0
	"$go" mod init setup
	"$go" mod edit -require "$1@$2"
	sed '/^\/\/go:build ignore$/d' "$source" >main.go
	"$go" build -trimpath -ldflags "-s -w $3" -o "$tools/$4" .
)

# compile_etcd MODULE VERSION LDFLAGS PROGRAM: the program is the module itself.
compile_etcd() {
	CGO_ENABLED=0 in_module "$1" "$2" -trimpath -ldflags "-s -w $3" -o "$tools/$4" "$1"
}

# compile_kubernetes MODULE VERSION LDFLAGS PROGRAM...
compile_kubernetes() (
	module=$1 version=$2
	shift 3
	in_kubernetes "$version"
	for program; do
		package=$module/cmd/$program
		[ "$program" != agnhost ] || package=$module/test/images/agnhost
		"$go" build -trimpath -ldflags "$(kubernetes_ldflags "$version")" -o "$tools/" "$package"
	done
)

# compile_kubernetes-e2e MODULE VERSION LDFLAGS PROGRAM
compile_kubernetes-e2e() (
	in_kubernetes "$2"
	"$go" test -c -trimpath -ldflags "$(kubernetes_ldflags "$2")" -o "$tools/$4" "$1/test/e2e"
)

# in_kubernetes VERSION: changes, in a subshell, to a module of its own that requires Kubernetes. That replaces its
# staging modules by directories of its repository; they are published as v0.MINOR.PATCH.
in_kubernetes() {
	local version=$1 staging=v0${1#v1} file module
	dir=$(mktemp -d)
	trap 'rm -rf "$dir"' EXIT
	cd "$dir"
	export GOFLAGS=-mod=mod CGO_ENABLED=0
	"$go" mod init setup
	file=$("$go" mod download -json "k8s.io/kubernetes@$version" | sed -n 's/.*"GoMod": "\(.*\)",/\1/p')
	"$go" mod edit -go="$(sed -n 's/^go //p' "$file")" -require "k8s.io/kubernetes@$version"
	for module in $(sed -n 's,^\t*\(k8s.io/[a-z-]*\) => ./staging.*,\1,p' "$file"); do
		"$go" mod edit -replace "$module=$module@$staging"
	done
}

# kubernetes_ldflags VERSION: the version is not in the sources, and that of a client must be one that servers know.
kubernetes_ldflags() {
	local minor=${1#v1.} base=k8s.io/component-base/version
	echo "-s -w -X $base.gitVersion=$1 -X $base.gitMajor=1 -X $base.gitMinor=${minor%%.*}" \
		"-X $base.gitTreeState=clean -X k8s.io/client-go/pkg/version.gitVersion=$1"
}

build_tools() {
	local module
	build_containerd go.mod
	module=sigs.k8s.io/cri-tools
	build crictl $module $crictl_version "-X $module/pkg/version.Version=$crictl_version" crictl
	module=github.com/opencontainers/runc
	build runc $module $runc_version "-X main.version=${runc_version#v}" runc-current
	programs
}

# build_containerd VERSION: builds what a node needs of containerd. The version go.mod is that of this module.
build_containerd() {
	local module=github.com/containerd/containerd/v2 version=$1
	[ "$version" != go.mod ] || version=$("$go" list -m -f '{{.Version}}' $module)
	case $version in v1.*) module=${module%/v2} ;; esac
	build containerd $module "$version" "-X $module/version.Version=$version" containerd ctr containerd-shim-runc-v2
}

# containerds MINOR...: each in a directory of its own.
containerds() {
	local all=$tools minor version tools
	for minor; do
		version=${containerd_versions[$minor]:-}
		tools=$all/containerd-$minor
		case $version in
		'') echo "setup: no such version of containerd: $minor" >&2; return 2 ;;
		debian) debian_containerd "$minor" ;;
		*) build_containerd "$version" ;;
		esac
	done
}

# debian_containerd MINOR: the package of this Debian, which has to be of that version.
debian_containerd() {
	[ ! -x "$tools/containerd" ] || return 0
	mkdir -p "$tools"
	quietly "unpack Debian's containerd" unpack_containerd "$1" || { rm -rf "$tools"; return 1; }
}

unpack_containerd() (
	dir=$(mktemp -d)
	trap 'rm -rf "$dir"' EXIT
	chmod 755 "$dir"
	cd "$dir"
	# The lists may be older than the mirror, or absent.
	apt-get download containerd || { apt-get update -q && apt-get download containerd; }
	dpkg-deb -x ./containerd_*.deb .
	case $(usr/bin/containerd --version) in
	*" $1."*) ;;
	*) echo "Debian 12 has containerd $1; this one has: $(usr/bin/containerd --version)"; exit 1 ;;
	esac
	# The program that says that it is complete comes last.
	mv usr/bin/{ctr,containerd-shim-runc-v2,containerd} "$tools/"
)

# programs compiles what the tests run inside of containers.
programs() {
	local source program
	for source in integration/programs/*.c; do
		program=$tools/$(basename "$source" .c)
		[ "$program" -nt "$source" ] || quietly "compile $source" gcc -Os -static -s -o "$program" "$source"
	done
}

while [ $# -gt 0 ]; do
	part=$1
	shift
	case $part in
	packages) packages ;;
	tools) build_tools ;;
	guest) guest ;;
	lint) build golangci-lint github.com/golangci/golangci-lint/v2 $lint_version '' golangci-lint ;;
	vulncheck) build govulncheck golang.org/x/vuln $vulncheck_version '' govulncheck ;;
	kubernetes) build_kubernetes ;;
	kubernetes-e2e) build kubernetes-e2e k8s.io/kubernetes $kubernetes_version '' e2e.test ;;
	containerds)
		minors=()
		while [[ ${1:-} == [0-9]* ]]; do
			minors+=("$1")
			shift
		done
		[ ${#minors[@]} -gt 0 ] || mapfile -t minors < <(printf '%s\n' "${!containerd_versions[@]}" | sort -V)
		containerds "${minors[@]}"
		;;
	*) echo "setup: no such part: $part" >&2; exit 2 ;;
	esac
done
