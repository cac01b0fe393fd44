#!/usr/bin/env python3
"""Checkpoints of a virtual machine whose guest writes to memory and disks all the while and checks
itself: it runs on, comes back on another node and beside itself, and whatever breaks meanwhile, it runs
on, or nothing of it is there."""
import glob
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import guest
from faults_test import Faults
from vm_lab import ECHO, Failure, VmLab, expect_libvirt, lab_name, run, wait_for

MEDIUM = os.path.join(VmLab.DISKS, "medium.iso")
# Of a checkpoint: whether the machine is to run on, and what is done there: all of it with
# GODWIT_FAULTS=all in the environment.
POINTS = [
    ("vm_checkpoint.stopped", True, ("kill",)), ("vm_checkpoint.diverted", True, ("kill",)),
    ("vm_checkpoint.memory", True, ("error", "kill")), ("vm_checkpoint.memory", False, ("kill",)),
    ("vm_checkpoint.memory_saved", True, ()), ("vm_checkpoint.disk_saved", True, ("kill",)),
    ("vm_checkpoint.stopped", False, ()), ("vm_checkpoint.before_publish", False, ("kill",))]
RESTORE_POINTS = [("vm_restore.disks_made", ("kill",)), ("vm_restore.loaded", ("kill",)),
                  ("vm_restore.before_commit", ("error",))]


def of_point(actions):
    return ("error", "kill") if os.environ.get("GODWIT_FAULTS") == "all" else actions


def expect(what, condition):
    if not condition:
        raise Failure("not true: %s" % what)


class Checkpoint:
    def __init__(self, lab, faults):
        self.lab = lab
        self.faults = faults
        self.folder = "/var/lib/godwit/%s/checkpoints" % lab_name()
        os.makedirs(self.folder)
        for node in ("n1", "n2"):
            os.makedirs(lab.disk_folder(node))
            with open(os.path.join(lab.disk_folder(node), "medium.iso"), "wb") as medium:
                medium.write(b"a medium" * 4096)
        raw = lab.make_disk("raw.img", 8, form="raw")
        cdrom = ("<disk type='file' device='cdrom'><driver name='qemu' type='raw'/><source file='%s'/>"
                 "<target dev='hda' bus='ide'/><readonly/></disk>" % MEDIUM)
        self.address = lab.boot("web", 1, disks=[lab.make_disk("web.qcow2", 128)],
                                extra=guest.disk_xml("vdb", raw, "raw") + cdrom)
        self.agent = lab.agent(self.address)
        self.agent.ask("disk /dev/vda")
        self.agent.ask("load 16 16")
        self.more_passes()

    def file(self, name):
        return os.path.join(self.folder, name)

    def more_passes(self, count=1):
        passes = self.agent.check()
        wait_for("%d passes over memory and disk" % count,
                 lambda: self.agent.check() >= passes + count, 60)
        return self.agent.check()

    def save(self, name, *options, check=True):
        done = self.lab("checkpoint", "web", "-o", self.file(name), "--json", *options, check=False)
        result = json.loads(done.stdout) if done.stdout else {"error": done.stderr}
        if check and result.get("outcome") != "saved":
            raise Failure("checkpoint: %s" % result)
        return result

    def restore(self, name, *options, check=True):
        done = self.lab("restore", self.file(name), "--json", *options, check=False, timeout=90)
        result = json.loads(done.stdout) if done.stdout else {"error": done.stderr}
        if check and result.get("outcome") != "restored":
            raise Failure("restore: %s" % result)
        return result

    def disks(self, node):
        return [name for name in self.lab.disks(node) if name != "medium.iso"]

    def runs_as_before(self, node):
        """No overlay, no half-made file, no note."""
        notes = "/var/lib/godwit/%s/*/migrations/*" % lab_name()
        wait_for("all is settled", lambda: not glob.glob(notes), 60)
        wait_for("it runs", lambda: self.lab.state("web") == "running", 20)
        expect("its disks are there: %s" % self.disks(node),
               self.disks(node) == ["raw.img", "web.qcow2"])
        xml = self.lab.virsh(node, "dumpxml", "web").stdout
        expect("it writes to them", "godwit-" not in xml and
               "godwit-" not in self.lab.virsh(node, "dumpxml", "--inactive", "web").stdout)
        expect("nothing is half-made: %s" % os.listdir(self.folder),
               not [f for f in os.listdir(self.folder) if f.endswith(".partial")])
        capabilities = json.loads(self.lab.virsh(
            node, "qemu-monitor-command", "web", '{"execute":"query-migrate-capabilities"}').stdout)
        expect("QEMU is as it was", not any(
            each["state"] for each in capabilities["return"]
            if each["capability"] == "background-snapshot"))
        self.more_passes()

    def nothing_on(self, node):
        notes = "/var/lib/godwit/%s/*/migrations/*" % lab_name()
        wait_for("all is settled", lambda: not glob.glob(notes), 60)
        expect("no domain is on %s" % node, self.lab.domains(node) == [])
        expect("no disk is on %s: %s" % (node, self.disks(node)), self.disks(node) == [])
        sockets = "/run/godwit/%s/%s/libvirt/sockets" % (lab_name(), node)
        expect("no FIFO is in %s" % sockets, os.listdir(sockets) == [])

    def on_console(self, name):
        """What its guest says of itself, without a network."""
        console = subprocess.Popen([self.lab.godwit, "vm", "console", name], stdin=subprocess.PIPE,
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        os.set_blocking(console.stdout.fileno(), False)
        said = []
        try:
            def ask():
                console.stdin.write(b"check\n")
                console.stdin.flush()
                wait_for("the console", lambda: said.append(console.stdout.read() or b"") or
                         re.search(rb"\n(ok|wrong)[ 0-9]+\r?\n", b"".join(said)), 20)
                answer = re.search(rb"\n(ok|wrong)( [0-9]+)\r?\n", b"".join(said))
                said.clear()
                if answer.group(1) != b"ok":
                    raise Failure("%s: %s" % (name, answer.group(0)))
                return int(answer.group(2))
            passes = ask()
            wait_for("its guest works on", lambda: ask() >= passes + 2, 60)
        finally:
            console.kill()
            console.wait()

    def while_it_runs(self):
        pulse = self.lab.pulse("echo", self.address, ECHO)
        pulse.mark()
        result = self.save("one", "--leave-running")
        mark = pulse.mark()
        pulse.finish()
        print("stood still for %.0f ms, client's gap %.0f ms, total %.2f s, %.0f MB" % (
            result["freeze_ns"] / 1e6, mark["longest_gap_us"] / 1e3, result["total_ns"] / 1e9,
            result["bytes_wire"] / 1e6), flush=True)
        expect("memory was saved while it ran on: %s" % result,
               "while it ran" in result["chosen_because"] and
               0 < result["freeze_ns"] < result["total_ns"] / 2)
        expect("no answer was wrong: %s" % mark, mark["wrong"] == mark["lost"] == 0)
        self.runs_as_before("n1")
        with open(os.open(self.file("key"), os.O_WRONLY | os.O_CREAT, 0o600), "wb") as key:
            key.write(os.urandom(32))
        self.save("small", "--leave-running", "--compress", "zstd", "--with-files",
                  "--encrypt", self.file("key"))
        expect("it is smaller", os.path.getsize(self.file("small")) <
               os.path.getsize(self.file("one")) * 0.7)
        expect("mode 0600", os.stat(self.file("one")).st_mode & 0o777 == 0o600)
        shown = json.loads(self.lab("image", "show", self.file("small"), "--decrypt", self.file("key"),
                                    "--json").stdout)
        expect("image show: %s" % shown, shown["complete"] and shown["vm"]["memory_bytes"] ==
               256 << 20 and [(each["target"], each["carried"]) for each in shown["vm"]["disks"]] ==
               [("vda", True), ("vdb", True), ("hda", True)])
        text = self.lab("image", "show", self.file("one")).stdout
        expect("as text: %s" % text, "virtual machine web" in text and "vda" in text)

    def refused(self):
        there = self.restore("one", "--node", "n2", check=False)
        expect("it is there once: %s" % there, "already" in there["error"])
        self.lab("checkpoint", "web", "-o", self.file("no"), "--verify", check=False)
        with open(os.path.join(self.lab.disk_folder("n2"), "medium.iso"), "r+b") as medium:
            medium.write(b"another")
        differs = self.restore("one", "--node", "n2", "--name", "copy", check=False)
        expect("a medium is another: %s" % differs, differs["outcome"] == "refused" and
               [each["code"] for each in differs["refusals"]] == ["vm.disk_differs"])
        os.unlink(os.path.join(self.lab.disk_folder("n2"), "medium.iso"))
        missing = self.restore("one", "--node", "n2", "--name", "copy", check=False)
        expect("a medium is missing: %s" % missing,
               [each["code"] for each in missing["refusals"]] == ["vm.disk_missing"])
        self.nothing_on("n2")

    def bad_files(self):
        shutil.copy(*(os.path.join(self.lab.disk_folder(node), "medium.iso")
                      for node in ("n1", "n2")))
        size = os.path.getsize(self.file("one"))

        def damage(name, at=None, length=None):
            path = self.file(name)
            shutil.copy(self.file("one"), path)
            with open(path, "r+b") as damaged:
                if length is not None:
                    damaged.truncate(length)
                else:
                    damaged.seek(at)
                    byte = damaged.read(1)
                    damaged.seek(at)
                    damaged.write(bytes([byte[0] ^ 1]))
            result = self.restore(name, "--node", "n2", "--name", "copy", check=False)
            expect("%s says where: %s" % (name, result), "offset" in result["error"])
            shown = self.lab("image", "show", path, check=False)
            expect("image show, too: %s" % shown.stderr, shown.returncode == 1)
            os.unlink(path)
            self.nothing_on("n2")

        damage("cut-in-memory", length=size // 3)
        damage("cut-in-disks", length=size - 100)
        damage("damaged-memory", at=size // 2)
        damage("damaged-disk", at=size - 5000)
        with open(self.file("foreign"), "w") as foreign:
            foreign.write("something else" * 1000)
        foreign = self.restore("foreign", "--node", "n2", check=False)
        expect("a foreign file: %s" % foreign, "offset" in foreign["error"])
        self.nothing_on("n2")

    def beside(self):
        os.unlink(os.path.join(self.lab.disk_folder("n2"), "medium.iso"))
        no_key = self.restore("small", "--node", "n2", "--name", "copy", check=False)
        expect("it takes a key: %s" % no_key, "it is encrypted" in no_key["error"])
        result = self.restore("small", "--node", "n2", "--name", "copy",
                              "--decrypt", self.file("key"))
        expect("it says that it is not connected: %s" % result,
               [each["code"] for each in result["warnings"]] == ["vm.unplugged"])
        expect("it has disks of its own: %s" % self.disks("n2"),
               self.disks("n2") == ["copy-vda.qcow2", "copy-vdb.img"])
        with open(os.path.join(self.lab.disk_folder("n2"), "medium.iso"), "rb") as medium:
            expect("its medium came along", medium.read() == b"a medium" * 4096)
        expect("they are sparse", os.stat(os.path.join(
            self.lab.disk_folder("n2"), "copy-vdb.img")).st_blocks * 512 < 1 << 20)
        link = self.lab.virsh("n2", "domif-getlink", "copy", "52:54:00:77:00:01").stdout
        expect("no link: %s" % link, "down" in link)
        expect("another uuid", self.lab.inspect("copy")["vm"]["uuid"] !=
               self.lab.inspect("web")["vm"]["uuid"])
        self.on_console("copy")
        # The original has not noticed.
        self.more_passes()
        self.remove_copy()

    def remove_copy(self):
        self.lab("rm", "--force", "copy")
        for name in self.disks("n2"):
            os.unlink(os.path.join(self.lab.disk_folder("n2"), name))

    def again(self):
        """Stopped, and back on the other node, as it was."""
        passes = self.agent.check()
        self.agent.close()
        self.lab("stop", "web", "--timeout", "1s")
        self.lab("rm", "--force", "web")
        for name in self.disks("n1"):
            os.unlink(os.path.join(self.lab.disk_folder("n1"), name))
        result = self.restore("one", "--node", "n2")
        print("restored in %.2f s" % (result["total_ns"] / 1e9), flush=True)
        self.agent = self.lab.agent(self.address)
        expect("it is as it was then", self.agent.check() < passes)
        expect("it is there only", self.lab.domains("n1") == [] and
               self.lab.domains("n2") == ["web"])
        expect("its record is right", self.lab.inspect("web")["node"] == "n2" and
               self.lab.inspect("web")["address"] == self.address)
        self.more_passes(2)
        self.runs_as_before("n2")

    def and_ends(self):
        """By default all of it is in the file afterwards, and nowhere else, also when the daemon dies
        as soon as the file has its name."""
        self.agent.close()
        self.faults.arm("vm_checkpoint.published", "kill")
        self.save("end", check=False)
        expect("it was killed", self.faults.was_hit())
        wait_for("it is taken down", lambda: "web" not in self.lab("ps", "-a").stdout, 30)
        self.nothing_on("n2")
        self.restore("end", "--node", "n1")
        self.agent = self.lab.agent(self.address)
        self.more_passes(2)
        self.runs_as_before("n1")

    def standing_still(self):
        """Its memory is a file, which userfaultfd(2) does not protect."""
        address = self.lab.boot("still", 2,
                                memory="<memoryBacking><source type='file'/></memoryBacking>")
        agent = self.lab.agent(address)
        agent.ask("load 8 16")
        wait_for("a pass", lambda: agent.check() > 0)
        result = json.loads(self.lab("checkpoint", "still", "-o", self.file("still"), "--json",
                                     "--leave-running").stdout)
        print("stood still for %.0f ms" % (result["freeze_ns"] / 1e6), flush=True)
        expect("it says so: %s" % result, "it stood still" in result["chosen_because"] and
               "memory configuration" in result["chosen_because"])
        passes = agent.check()
        wait_for("it runs on", lambda: agent.check() >= passes + 2, 30)
        agent.close()
        self.lab("rm", "--force", "still")

    def broken_checkpoints(self):
        for point, leave, actions in POINTS:
            for action in of_point(actions):
                self.faults.arm(point, action)
                options = ("--leave-running",) if leave else ()
                result = self.save("broken", *options, check=False)
                expect("%s: %s was hit: %s" % (point, action, result), self.faults.was_hit())
                self.runs_as_before("n1")
                expect("no file", not os.path.exists(self.file("broken")))
                print("%s: %s, %s" % (point, action, "runs on" if leave else "ends"), flush=True)

    def full_disk(self):
        small = self.file("small-disk")
        os.makedirs(small)
        run("mount", "-t", "tmpfs", "-o", "size=24M", "tmpfs", small)
        try:
            for options in (("--leave-running",), ()):
                result = self.save("small-disk/file", *options, check=False)
                expect("it is full: %s" % result, "No space" in result["error"])
                expect("nothing is left", os.listdir(small) == [])
                self.runs_as_before("n1")
        finally:
            run("umount", small)

    def cancelled(self):
        self.faults.arm("vm_checkpoint.memory_saved", "wait")
        saving = subprocess.Popen(
            [self.lab.godwit, "checkpoint", "web", "-o", self.file("cancelled"), "--json",
             "--leave-running"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        wait_for("it is there", self.faults.was_hit, 30)
        saving.send_signal(signal.SIGINT)
        # The first line is a carriage return.
        said = saving.stderr.readline() + saving.stderr.readline()
        expect("cancelling: %s" % said, "cancelling" in said)
        self.faults.go_on()
        out, _ = saving.communicate(timeout=60)
        expect("cancelled: %s" % out, json.loads(out)["outcome"] == "rolled_back")
        self.faults.disarm()
        self.runs_as_before("n1")

    def shut_down(self):
        """Its guest ends it while it is saved: what it wrote last is in its disks."""
        self.faults.arm("vm_checkpoint.memory_saved", "wait")
        saving = subprocess.Popen(
            [self.lab.godwit, "checkpoint", "web", "-o", self.file("off"), "--json",
             "--leave-running"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        wait_for("it is there", self.faults.was_hit, 30)
        self.more_passes()
        self.agent.close()
        self.lab.virsh("n1", "destroy", "web")
        self.faults.go_on()
        out, _ = saving.communicate(timeout=60)
        expect("it ended: %s" % out, json.loads(out)["outcome"] == "rolled_back" and
               "has ended" in json.loads(out)["error"])
        self.faults.disarm()
        wait_for("it is stopped", lambda: self.lab.state("web") == "stopped", 30)
        expect("its disks are whole: %s" % self.disks("n1"),
               self.disks("n1") == ["raw.img", "web.qcow2"])
        disk = os.path.join(self.lab.disk_folder("n1"), "web.qcow2")
        run("qemu-img", "check", "-q", disk)
        expect("they are one file each", "backing" not in run("qemu-img", "info", disk).stdout)
        expect("its definition is as before", "godwit-" not in
               self.lab.virsh("n1", "dumpxml", "web").stdout)
        self.lab("rm", "--force", "web")

    def broken_restores(self):
        for point, actions in RESTORE_POINTS:
            for action in of_point(actions):
                self.faults.arm(point, action)
                result = self.restore("one", "--node", "n2", "--name", "copy", check=False)
                expect("%s: %s was hit: %s" % (point, action, result), self.faults.was_hit())
                self.nothing_on("n2")
                expect("no record", "copy" not in self.lab("ps", "-a").stdout)
                print("%s: %s" % (point, action), flush=True)
        self.faults.arm("vm_restore.after_commit", "kill")
        self.restore("one", "--node", "n2", "--name", "copy", check=False)
        wait_for("it runs all the same", lambda: "copy" in self.lab("ps").stdout and
                 self.lab.inspect("copy")["vm"]["state"] == "running", 30)
        self.on_console("copy")
        self.remove_copy()


def main():
    expect_libvirt()
    faults = Faults()
    try:
        with VmLab(sys.argv[1]) as lab:
            began = time.monotonic()
            it = Checkpoint(lab, faults)
            for part in (it.while_it_runs, it.refused, it.bad_files, it.beside, it.standing_still,
                         it.broken_checkpoints, it.full_disk, it.cancelled, it.broken_restores,
                         it.again, it.and_ends, it.shut_down):
                part()
                print("%s: %.0f s" % (part.__name__, time.monotonic() - began), flush=True)
    finally:
        faults.remove()
    return 0


if __name__ == "__main__":
    sys.exit(main())
