#!/usr/bin/env python3
"""Virtual machines under the commands of services: taken on, started, moved, stopped, forgotten."""
import json
import os
import subprocess
import sys

import guest
from vm_lab import ECHO, Failure, VmLab, expect_libvirt, lab_name, run, wait_for


def expect(what, condition):
    if not condition:
        raise Failure("not true: %s" % what)


def refused_codes(result):
    return {each["code"] for each in result.get("refusals", [])}


def commands(lab):
    # In a folder that both nodes have: it stays where it is.
    shared = "/var/lib/godwit/%s/shared" % lab_name()
    os.makedirs(shared)
    disk = os.path.join(shared, "web.qcow2")
    run("qemu-img", "create", "-q", "-f", "qcow2", disk, "128M")
    address = lab.define("web", 1, disks=[disk])
    expect("a defined machine is stopped", lab.state("web") == "stopped")
    expect("ps -a lists it", "web" in lab("ps", "-a").stdout)
    expect("ps does not", "web" not in lab("ps").stdout)
    lab("vm", "start", "web")
    lab.wait_until_it_listens("web", address, ECHO, timeout=60)
    # With the balloon in it the size of its memory is nothing special.
    wait_for("libvirt's balloon", lambda: "actual 262144\n" in
             lab.virsh("n1", "dommemstat", "web").stdout)
    expect("QEMU 7.2 would miss what it writes",
           refused_codes(lab.migrate("web", "n2", "--strategy", "precopy")) == {"vm.tcg_tracking"})
    planned = lab.migrate("web", "n2", "--dry-run")
    expect("so it would go cold by itself: %s" % planned, planned["outcome"] == "movable" and
           planned["strategy"] == "cold" and "emulated" in planned["chosen_because"])
    lab.empty_balloon("web")
    shown = lab.inspect("web")
    expect("inspect shows it: %s" % shown,
           shown["state"] == "running" and shown["vm"]["state"] == "running" and
           shown["address"] == address and shown["vm"]["memory_bytes"] == 256 << 20)
    expect("ps shows what it is", "virtual machine, 256 MiB" in lab("ps").stdout)
    # The domain's own name only once, whatever node.
    again = lab("vm", "adopt", "web", check=False)
    expect("it is there once", again.returncode == 1 and "already" in again.stderr)
    unknown = lab("vm", "adopt", "nothing", check=False)
    expect("an unknown domain is an error", unknown.returncode == 1 and
           "no domain" in unknown.stderr)
    signal = lab("signal", "web", "TERM", check=False)
    expect("it has no processes to signal", "is a virtual machine" in signal.stderr)
    console = subprocess.Popen([lab.godwit, "vm", "console", "web"], stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    os.set_blocking(console.stdout.fileno(), False)
    console.stdin.write(b"hello\n")
    console.stdin.flush()
    said = []
    try:
        wait_for("the console to answer", lambda: said.append(console.stdout.read() or b"") or
                 b"console: hello" in b"".join(said), 20)
    finally:
        console.kill()
        console.wait()
    return address


def moves(lab, address):
    pulse = lab.pulse("echo", address, ECHO)
    agent = lab.agent(address)
    agent.ask("load 16 16")
    agent.ask("disk /dev/vda")
    wait_for("a pass over memory and disk", lambda: agent.check() > 0)
    plan = lab.migrate("web", "n2", "--dry-run")
    expect("it is told before what a move costs: %s" % plan,
           plan["outcome"] == "movable" and plan["strategy"] == "precopy" and
           plan["predicted_total_ns"] > 0 and plan["dirty_pages_per_s"] > 0 and
           "samples of what it wrote" in plan["based_on"] and
           [each["strategy"] for each in plan["forecasts"]] == ["precopy", "hybrid", "postcopy", "cold"])
    pulse.mark()
    result = lab.move("web", "n2")
    expect("it went in rounds: %s" % result, result["strategy"] == "precopy" and
           result["rounds"] >= 1 and 0 < result["freeze_ns"] < result["total_ns"])
    mark = pulse.mark()
    print("to n2: gap %.0f ms, freeze %.0f ms, total %.2f s, %d rounds, %.0f MB" % (
        mark["longest_gap_us"] / 1e3, result["freeze_ns"] / 1e6, result["total_ns"] / 1e9,
        result["rounds"], result["bytes_wire"] / 1e6), flush=True)
    expect("no answer was wrong: %s" % mark, mark["wrong"] == mark["lost"] == 0 and
           mark["checked"] > 0 and mark["alive"] == 1)
    expect("it counts: %s" % result, result["bytes_wire"] > 16 << 20)
    lab.expect_only_on("web", "n2")
    expect("its disk is shared", os.listdir("/var/lib/godwit/%s/shared" % lab_name()) ==
           ["web.qcow2"])
    expect("it runs there", lab.inspect("web")["node"] == "n2" and lab.state("web") == "running")
    more_passes(agent)
    taken_back(lab, agent, "web", "n2", "n1", "4MiB")
    result = lab.move("web", "n1", "--strategy", "cold")
    expect("cold: %s" % result, result["strategy"] == "cold")
    lab.expect_only_on("web", "n1")
    agent.check()
    end = pulse.finish()
    expect("its client never lost its connection: %s" % end,
           end["total_wrong"] == end["total_lost"] == 0)
    return agent


def more_passes(agent):
    """All that was written before is read back."""
    passes = agent.check()
    wait_for("two passes over memory and disk", lambda: agent.check() >= passes + 2, 60)


def taken_back(lab, agent, name, here, there, bandwidth):
    """Limited, and then not wanted any more."""
    passes = agent.check()
    limited = subprocess.Popen([lab.godwit, "migrate", name, there, "--json", "--bandwidth",
                                bandwidth], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               text=True)
    wait_for("it is on its way", lambda: lab.state(name) == "migrating")
    wait_for("libvirt has begun", lambda: name in lab.domains(there))
    limited.send_signal(2)
    out, _ = limited.communicate(timeout=30)
    result = json.loads(out)
    expect("it was taken back: %s" % result, result["outcome"] == "rolled_back" and
           limited.returncode == 4 and result["node"] == here)
    lab.expect_only_on(name, here)
    wait_for("it runs on", lambda: agent.check() > passes)


def disks(lab):
    """Of a machine whose disk only its node sees: it is copied while the guest writes to it."""
    disk = lab.make_disk("store.qcow2", 128)
    raw = lab.make_disk("raw.img", 8, form="raw")
    address = lab.define("store", 4, disks=[disk], extra=guest.disk_xml("vdb", raw, "raw"))
    expect("what does not run cannot be copied",
           refused_codes(lab.migrate("store", "n2")) == {"vm.disk_not_shared"})
    lab("vm", "start", "store")
    lab.wait_until_it_listens("store", address, ECHO, timeout=60)
    lab.empty_balloon("store")
    agent = lab.agent(address)
    agent.ask("disk /dev/vda")
    wait_for("a pass over the disk", lambda: agent.check() > 0)
    expect("the folder is missing there",
           refused_codes(lab.migrate("store", "n2")) == {"vm.disk_folder"})
    os.makedirs(lab.disk_folder("n2"))
    other = os.path.join(lab.disk_folder("n2"), "store.qcow2")
    with open(other, "w") as text:
        text.write("something else")
    expect("one is there already", refused_codes(lab.migrate("store", "n2")) == {"vm.disk_exists"})
    with open(other) as text:
        expect("it is left alone", text.read() == "something else")
    os.unlink(other)
    planned = lab.migrate("store", "n2", "--dry-run")
    expect("it says what is copied: %s" % planned,
           [(each["code"], each["object"]) for each in planned["warnings"]] ==
           [("vm.disk_copied", "disk vda"), ("vm.disk_copied", "disk vdb")])
    taken_back(lab, agent, "store", "n1", "n2", "1MiB")
    result = lab.move("store", "n2")
    print("with disks: freeze %.0f ms, total %.2f s, %.0f MB" % (
        result["freeze_ns"] / 1e6, result["total_ns"] / 1e9, result["bytes_wire"] / 1e6))
    lab.expect_only_on("store", "n2")
    expect("both are there: %s" % lab.disks("n2"), lab.disks("n2") == ["raw.img", "store.qcow2"])
    expect("they are sparse", os.stat(other).st_blocks * 512 < 32 << 20 and
           os.stat(other[:-len("store.qcow2")] + "raw.img").st_blocks * 512 < 1 << 20)
    more_passes(agent)
    lab.move("store", "n1", "--strategy", "cold")
    lab.expect_only_on("store", "n1")
    passes = agent.check()
    wait_for("a pass over the disk", lambda: agent.check() > passes, 60)
    lab("rm", "--force", "store")


def evacuation(lab):
    lab("run", "--name", "sleeper", "--node", "n1", "-d", "--", "sleep", "1000")
    planned = json.loads(lab("migrate", "--all", "n1", "--dry-run", "--json").stdout)
    expect("the plan has both, the machine first: %s" % planned,
           [(each["name"], each["outcome"]) for each in planned] ==
           [("web", "movable"), ("sleeper", "movable")])
    lab("migrate", "--all", "n1", "--parallel", "2", timeout=120)
    expect("all are on the other node", {lab.inspect(name)["node"] for name in
                                         ("web", "sleeper")} == {"n2"})
    nobody = lab("migrate", "--all", "n1")
    expect("there is nothing left to move", "0 of 0" in nobody.stdout)
    unknown = lab("migrate", "--all", "n9", check=False)
    expect("an unknown node is an error", unknown.returncode == 1 and "n9" in unknown.stderr)
    lab("migrate", "--all", "n2", "n1", timeout=120)
    lab("rm", "--force", "sleeper")
    lab.expect_only_on("web", "n1")


def stopped(lab):
    # The guest does not look at its power button.
    lab("stop", "web", "--timeout", "1s")
    wait_for("it is stopped", lambda: lab.state("web") == "stopped")
    result = lab.move("web", "n2")
    expect("its definition went", result["strategy"] == "cold" and lab.state("web") == "stopped")
    lab.expect_only_on("web", "n2")
    lab("rm", "web")
    expect("rm leaves it to libvirt", "web" in lab.domains("n2"))
    lab("vm", "adopt", "web", "--node", "n2")
    lab("rm", "--force", "web")
    expect("rm --force does not", lab.domains("n2") == [])


def refusals(lab):
    host_device = ("<hostdev mode='subsystem' type='pci' managed='no'><source><address "
                   "domain='0x0000' bus='0x42' slot='0x00' function='0x0'/></source></hostdev>")
    lab.define("odd", 2, extra=host_device, bridge="nowhere0")
    for options in (("--dry-run",), ()):
        result = lab.migrate("odd", "n2", *options)
        expect("refused: %s" % result, result["outcome"] == "refused" and
               result["exit_code"] == 3 and
               refused_codes(result) >= {"vm.host_device"})
    expect("its bridge is missing there: %s" % result,
           "vm.bridge" in refused_codes(lab.migrate("odd", "n2", "--dry-run")))
    lab("rm", "--force", "odd")
    lab.define("twin", 3)
    xml = lab.virsh("n1", "dumpxml", "twin").stdout
    path = os.path.join("/run/godwit", "twin-%d.xml" % os.getpid())
    with open(path, "w") as text:
        text.write(xml)
    lab.virsh("n2", "define", path)
    os.unlink(path)
    expect("it is there already", refused_codes(lab.migrate("twin", "n2")) == {"vm.exists"})
    lab.virsh("n2", "undefine", "twin")
    expect("it can go now", lab.migrate("twin", "n2", "--dry-run")["outcome"] == "movable")
    for options in (("--verify",), ("--throttle",)):
        done = lab("migrate", "twin", "n2", *options, check=False)
        expect("said what is not for machines", done.returncode == 1 and done.stderr)
    lab("rm", "--force", "twin")


def main():
    expect_libvirt()
    with VmLab(sys.argv[1]) as lab:
        address = commands(lab)
        agent = moves(lab, address)
        evacuation(lab)
        more_passes(agent)
        stopped(lab)
        refusals(lab)
        disks(lab)
    return 0


if __name__ == "__main__":
    sys.exit(main())
