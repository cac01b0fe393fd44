#!/bin/sh
# Installs from Debian what Godwit is built, tested and shown with. Says nothing and changes nothing
# when all of it is there (some 30 ms).
#
#   scripts/install-deps.sh build    compiler and libraries
#   scripts/install-deps.sh run      build, and the programs that tests and the demo move
#   scripts/install-deps.sh test     run, and the tools that read the code
set -eu

build="g++ cmake ninja-build make pkg-config ccache mold
 libabsl-dev libprotobuf-dev protobuf-compiler libgrpc++-dev protobuf-compiler-grpc
 libspdlog-dev libfmt-dev libcli11-dev libssl-dev libsqlite3-dev
 libnl-3-dev libnl-route-3-dev libxxhash-dev liblz4-dev libzstd-dev libgtest-dev libgmock-dev libbenchmark-dev
 libipsec-mb-dev libvirt-dev libpugixml-dev"
run="redis-server redis-tools nginx-light memcached python3-minimal python3 wrk iperf3 iproute2"
# Virtual machines (godwit vm): without them everything else is built and tested.
vm="libvirt-daemon libvirt-daemon-driver-qemu libvirt-daemon-system libvirt-clients qemu-system-x86 qemu-utils
 busybox-static cpio"
test="$vm postgresql nodejs openssh-server openssh-client clang-format clang-tidy clang libclang-rt-dev spin"

case "${1:-run}" in
  build) wanted="$build" ;;
  run) wanted="$build $run" ;;
  test) wanted="$build $run $test" ;;
  *) echo "usage: $0 [build|run|test]" >&2; exit 2 ;;
esac

# shellcheck disable=SC2086
there=" $(dpkg-query -W -f '${db:Status-Status}=${Package} ' $wanted 2>/dev/null || true)"
missing=""
for package in $wanted; do
  case "$there" in *" installed=$package "*) ;; *) missing="$missing $package" ;; esac
done
[ -n "$missing" ] || exit 0

if [ "$(id -u)" != 0 ]; then
  echo "These Debian packages are missing; install them as root:$missing" >&2
  exit 1
fi

# The servers are wanted as programs: Debian would start each of them as a service of this machine.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
  printf '#!/bin/sh\nexit 101\n' > "$policy"
  chmod 755 "$policy"
  trap 'rm -f "$policy"' EXIT
fi
export DEBIAN_FRONTEND=noninteractive
echo "installing:$missing"
# shellcheck disable=SC2086
if ! apt-get install -y --no-install-recommends $missing; then
  apt-get update
  # shellcheck disable=SC2086
  apt-get install -y --no-install-recommends $missing
fi
