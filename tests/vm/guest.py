"""The guest that the tests move: Debian's cloud kernel and an initramfs with busybox and
tests/vm/agent, made once below the build folder.

  tests/vm/guest.py BUILD        makes it
"""
import fcntl
import glob
import os
import shutil
import subprocess
import sys

# In an order that works: each needs those before it.
MODULES = ("virtio_ring virtio virtio_pci_legacy_dev virtio_pci_modern_dev virtio_pci "
           "failover net_failover virtio_net virtio_blk virtio_balloon").split()

INIT = """#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sysfs /sys
/bin/busybox mount -t devtmpfs dev /dev
for module in %s; do /bin/busybox insmod /modules/$module.ko; done
for word in $(/bin/busybox cat /proc/cmdline); do
  case $word in guest_ip=*) address=${word#guest_ip=} ;; esac
done
/bin/busybox ip link set lo up
/bin/busybox ip address add $address dev eth0
/bin/busybox ip link set eth0 up
/agent &
while read -r line; do
  echo "console: $line"
  case $line in
    off) /bin/busybox poweroff -f ;;
    check) echo check | /bin/busybox nc 127.0.0.1 7001 ;;
  esac
done
/bin/busybox sleep 1000000
""" % " ".join(MODULES)


def kernel_package():
    shown = subprocess.run(["apt-cache", "depends", "linux-image-cloud-amd64"], check=True,
                           capture_output=True, text=True).stdout
    return next(line.split()[1] for line in shown.splitlines() if "Depends:" in line)


def fetch_kernel(folder):
    found = glob.glob(os.path.join(folder, "kernel", "boot", "vmlinuz-*"))
    if found:
        return found[0]
    package = kernel_package()
    done = subprocess.run(["apt-get", "download", package], cwd=folder, capture_output=True)
    if done.returncode != 0:
        subprocess.run(["apt-get", "update"], check=True, capture_output=True)
        subprocess.run(["apt-get", "download", kernel_package()], cwd=folder, check=True,
                       capture_output=True)
    deb = glob.glob(os.path.join(folder, "*.deb"))[0]
    unpacked = os.path.join(folder, "kernel.new")
    shutil.rmtree(unpacked, ignore_errors=True)
    subprocess.run(["dpkg-deb", "-x", deb, unpacked], check=True)
    os.rename(unpacked, os.path.join(folder, "kernel"))
    os.unlink(deb)
    return glob.glob(os.path.join(folder, "kernel", "boot", "vmlinuz-*"))[0]


def make_initramfs(folder, agent):
    image = os.path.join(folder, "initramfs")
    newest = max(os.path.getmtime(agent), os.path.getmtime(__file__))
    if os.path.exists(image) and os.path.getmtime(image) >= newest:
        return image
    root = os.path.join(folder, "root")
    shutil.rmtree(root, ignore_errors=True)
    os.makedirs(os.path.join(root, "bin"))
    os.makedirs(os.path.join(root, "modules"))
    shutil.copy("/bin/busybox", os.path.join(root, "bin"))
    shutil.copy(agent, os.path.join(root, "agent"))
    for module in MODULES:
        found = glob.glob(os.path.join(folder, "kernel", "lib", "modules", "*", "kernel", "**",
                                       module + ".ko"), recursive=True)
        shutil.copy(found[0], os.path.join(root, "modules"))
    init = os.path.join(root, "init")
    with open(init, "w") as text:
        text.write(INIT)
    os.chmod(init, 0o755)
    names = subprocess.run(["find", "."], cwd=root, check=True, capture_output=True).stdout
    with open(image + ".new", "wb") as out:
        subprocess.run(["cpio", "-o", "-H", "newc", "--quiet"], cwd=root, input=names, stdout=out,
                       check=True)
    os.rename(image + ".new", image)
    return image


# QEMU before 9.0 misses writes of an emulated guest while its memory is copied, unless the size of
# its RAM is no multiple of 256 KiB (vm.tcg_tracking); libvirt rounds to MiB.
EMULATOR = """#!/bin/sh
count=$#
while [ $count -gt 0 ]; do
  word=$1; shift; count=$((count - 1))
  case $previous,$word in
    -m,[0-9]*) word=$(($word * 1024 + 16))k ;;
    -object,*memory-backend-*'"size":'*)
      size=${word##*'"size":'}
      word=${word%%'"size":'*}'"size":'$((${size%%[!0-9]*} + 16384))${size#${size%%[!0-9]*}} ;;
  esac
  previous=$word
  set -- "$@" "$word"
done
exec /usr/bin/qemu-system-x86_64 "$@"
"""


def make_emulator(folder):
    path = os.path.join(folder, "qemu")
    with open(path + ".new", "w") as text:
        text.write(EMULATOR)
    os.chmod(path + ".new", 0o755)
    os.rename(path + ".new", path)
    return path


def make(build):
    """Paths of kernel, initramfs and emulator."""
    folder = os.path.join(os.path.abspath(build), "vm-guest")
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, "lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return (fetch_kernel(folder), make_initramfs(folder, os.path.join(build, "vm_agent")),
                make_emulator(folder))


def disk_xml(target, path, form="qcow2"):
    return ("<disk type='file' device='disk'><driver name='qemu' type='%s' cache='none'/>"
            "<source file='%s'/><target dev='%s' bus='virtio'/></disk>" % (form, path, target))


def domain_xml(build, name, address, mac, memory_mib=256, disks=(), bridge="gw0", extra="", memory="",
               cpu="<cpu mode='custom' match='exact'><model>qemu64</model></cpu>"):
    """A domain for emulation without KVM; `address` as 10.77.0.9/16. `disks`: qcow2 files.
    `memory`: what its memory is, as <memoryBacking>."""
    kernel, initramfs, emulator = make(build)
    drives = "".join(disk_xml("vd" + "abcdef"[i], path) for i, path in enumerate(disks))
    return """<domain type='qemu'>
  <name>%s</name>
  <memory unit='MiB'>%d</memory>%s
  <vcpu>1</vcpu>
  <os><type arch='x86_64' machine='pc'>hvm</type><kernel>%s</kernel><initrd>%s</initrd>
    <cmdline>console=ttyS0 quiet panic=1 guest_ip=%s</cmdline></os>
  <features><acpi/></features>
  %s
  <devices>
    <emulator>%s</emulator>
    %s
    <interface type='bridge'><mac address='%s'/><source bridge='%s'/><model type='virtio'/></interface>
    <serial type='pty'/><console type='pty'/>
    <memballoon model='virtio'/>
    %s
  </devices>
</domain>
""" % (name, memory_mib, memory, kernel, initramfs, address, cpu,
       emulator, drives, mac, bridge, extra)


if __name__ == "__main__":
    print(*make(sys.argv[1]), sep="\n")
