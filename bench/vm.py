"""What does moving a virtual machine cost, beside libvirt's own migration?

An idle guest of 512 MiB with a disk of 256 MiB that only its node has, at 100 MiB/s; a client asks
each millisecond on one TCP connection. The same machine is moved by `virsh migrate --live
--copy-storage-all` first, and by Godwit then; at last one that writes half as much again as its link
takes, by Godwit alone: `virsh migrate` would never end. The guests are emulated, without KVM: they are slow
after a move, by either of them, until their code has been translated anew.
"""

import os
import re
import subprocess
import sys
import time

import common

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "tests", "vm"))
import vm_lab  # noqa: E402

MIB, DISK_MIB, LIMIT = 512, 256, 100
BUSY_MIB, BUSY_LIMIT = 64, 16
HOSTS = {"n1": "10.77.0.11", "n2": "10.77.0.12"}


def new_lab(godwit):
    return vm_lab.VmLab(godwit)


def boot(lab, name, number, by_godwit):
    for node in HOSTS:
        os.makedirs(lab.disk_folder(node), exist_ok=True)
    disk = lab.make_disk(name + ".qcow2", DISK_MIB)
    address = lab.boot(name, number, memory_mib=MIB, disks=[disk])
    if not by_godwit:
        lab("rm", name)  # libvirt keeps it
    return address


def by_virsh(lab, name, source, destination):
    lab.make_disk(name + ".qcow2", DISK_MIB, node=destination)
    begun = time.monotonic()
    lab.virsh(source, "migrate", name, "--live", "--persistent", "--undefinesource",
              "--copy-storage-all", "--unsafe", "--bandwidth", LIMIT,
              "--desturi", lab.uri(destination), "--migrateuri", "tcp://" + HOSTS[destination],
              timeout=120)
    total = time.monotonic() - begun
    os.unlink(os.path.join(lab.disk_folder(source), name + ".qcow2"))
    shown = lab.virsh(destination, "domjobinfo", name, "--completed").stdout
    stopped = re.search(r"^Total downtime: +(\d+) +ms", shown, re.M)
    return {"total_ns": total * 1e9, "freeze_ns": int(stopped[1]) * 1e6}


def by_godwit(lab, name, source, destination):
    result = lab.move(name, destination, "--bandwidth", "%dMiB" % LIMIT)
    lab.expect_only_on(name, destination)
    return result


def row(lab, title, name, number, move, moves):
    address = boot(lab, name, number, move is by_godwit)
    client = lab.pulse("echo", address, vm_lab.ECHO, interval_us=1000)
    results = []
    for i in range(moves + 2):
        time.sleep(1)
        client.mark()
        result = move(lab, name, *(("n1", "n2") if i % 2 == 0 else ("n2", "n1")))
        time.sleep(0.5)
        seen = client.mark()
        if seen["wrong"] or seen["lost"]:
            raise common.godwit_lab.Failure("wrong or lost answers: %s" % seen)
        result["gap_ns"] = seen["longest_gap_us"] * 1000
        if i >= 2:  # QEMU is probed by libvirt the first time
            results.append(result)
    client.finish()
    if move is by_godwit:
        lab("rm", "--force", name)
    else:
        lab.virsh("n1", "destroy", name)
        lab.virsh("n1", "undefine", name)
        os.unlink(os.path.join(lab.disk_folder("n1"), name + ".qcow2"))
    return [title, common.spread([r["gap_ns"] for r in results], 1e6),
            common.spread([r["freeze_ns"] for r in results], 1e6),
            common.spread([r["total_ns"] for r in results], 1e9)]


def busy_row(lab, quick):
    """Which writes half as much again as the link takes; it moves by itself."""
    address = boot(lab, "busy", 3, True)
    agent = lab.agent(address)
    agent.ask("load %d %d" % (BUSY_MIB, BUSY_LIMIT * 3 // 2))
    vm_lab.wait_for("a pass over its memory", lambda: agent.check() > 0, 60)
    client = lab.pulse("echo", address, vm_lab.ECHO, interval_us=1000)
    results = []
    for i in range(2 if quick else common.MOVES - common.MOVES % 2):
        time.sleep(3)
        client.mark()
        destination = "n2" if i % 2 == 0 else "n1"
        result = lab.move("busy", destination, "--bandwidth", "%dMiB" % BUSY_LIMIT)
        source = "n1" if destination == "n2" else "n2"
        common.godwit_lab.wait_for("it to be gone at its source", lambda source=source:
                                   "busy" not in lab.domains(source), 60)
        time.sleep(0.5)
        seen = client.mark()
        if seen["wrong"] or seen["lost"] or result["strategy"] != "hybrid":
            raise common.godwit_lab.Failure("busy: %s, %s" % (seen, result))
        result["gap_ns"] = seen["longest_gap_us"] * 1000
        results.append(result)
        agent.check()
    client.finish()
    lab("rm", "--force", "busy")
    return ["godwit migrate, auto: writes %d MiB/s of %d MiB, at %d MiB/s" % (
        BUSY_LIMIT * 3 // 2, BUSY_MIB, BUSY_LIMIT),
            common.spread([r["gap_ns"] for r in results], 1e6),
            common.spread([r["freeze_ns"] for r in results], 1e6),
            common.spread([r["total_ns"] for r in results], 1e9)]


def run(lab, quick):
    vm_lab.expect_libvirt()
    moves = 2 if quick else common.MOVES - common.MOVES % 2
    return ("A virtual machine of %d MiB with a disk of %d MiB, at %d MiB/s" % (
        MIB, DISK_MIB, LIMIT), ["by", "client's gap, ms", "stopped, ms", "total, s"],
        [row(lab, "virsh migrate", "plain", 1, by_virsh, moves),
         row(lab, "godwit migrate", "web", 2, by_godwit, moves),
         busy_row(lab, quick)])
