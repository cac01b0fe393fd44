#!/usr/bin/env python3
"""What breaks while a virtual machine moves: daemons, libvirt, the link. Afterwards it runs on exactly
one node with nothing wrong in its memory, nothing is left on the other, and it moves again."""
import contextlib
import glob
import os
import signal
import subprocess
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "faults"))
from vm_lab import ECHO, Failure, VmLab, lab_name, expect_libvirt, wait_for  # noqa: E402
from breaking import Faults  # noqa: E402


def children(pid):
    found = []
    for path in glob.glob("/proc/%s/task/*/children" % pid):
        with contextlib.suppress(OSError), open(path) as text:
            found += text.read().split()
    return found


def pid_in(path):
    with open(path) as text:
        return int(text.read().split()[0])


class Breaking:
    def __init__(self, lab, faults):
        self.lab = lab
        self.faults = faults
        os.makedirs(lab.disk_folder("n2"))
        self.address = lab.boot("web", 1, disks=[lab.make_disk("web.qcow2", 128)])
        self.agent = lab.agent(self.address)
        self.agent.ask("disk /dev/vda")
        self.agent.ask("load 8 16")
        wait_for("a pass over memory and disk", lambda: self.agent.check() > 0)
        self.at = "n1"

    def other(self):
        return "n2" if self.at == "n1" else "n1"

    def begin(self, *options):
        return subprocess.Popen([self.lab.godwit, "migrate", "web", self.other(), "--json",
                                 *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                text=True)

    def running(self):
        """Nodes whose libvirt runs it."""
        return [node for node in ("n1", "n2")
                if "web" in self.lab.virsh(node, "list", "--name", "--state-running",
                                           check=False).stdout.split()]

    def settled(self):
        def look():
            shown = self.lab("inspect", "web", "--json", check=False)
            if shown.returncode != 0 or '"state": "running"' not in shown.stdout.replace(
                    '":"', '": "'):
                return None
            return self.lab.inspect("web")["node"]
        return wait_for("it is settled", look, 60)

    def case(self, name, act, expected=None):
        """`expected`: True: it has moved; False: it has not; None: either."""
        began = time.monotonic()
        before = self.at
        act()
        self.faults.disarm()
        now = self.settled()
        wait_for("it runs on one node", lambda: self.running() == [now], 30)
        if expected is not None and (now != before) != expected:
            raise Failure("%s: it is on %s, was on %s" % (name, now, before))
        self.at = now
        self.lab.expect_only_on("web", now, 90)  # memory may follow
        if self.lab.disks(now) != ["web.qcow2"]:
            raise Failure("%s: disks on %s: %s" % (name, now, self.lab.disks(now)))
        passes = self.agent.check()
        wait_for("the guest works on", lambda: self.agent.check() > passes, 20)
        self.no_notes()
        print("%-40s %s -> %s, %.1f s" % (name, before, now, time.monotonic() - began), flush=True)

    def no_notes(self):
        """Of daemons about migrations that are not settled."""
        notes = "/var/lib/godwit/%s/*/migrations/*" % lab_name()
        wait_for("no journal is left", lambda: not glob.glob(notes), 30)

    def fault(self, point, action, expected=None, options=()):
        def act():
            self.faults.arm(point, action)
            said = self.begin(*options).communicate(timeout=120)
            if not self.faults.was_hit():
                raise Failure("%s was not hit: %s" % (point, said))
        self.case("%s: %s" % (point, action), act, expected)

    def while_limited(self, name, act, expected=False, bandwidth="8MiB"):
        """In the rounds, or while its disk is copied, which a limit makes long."""
        def both():
            moving = self.begin("--bandwidth", bandwidth, "--stall-timeout", "1s")
            wait_for("it is on its way", lambda: "web" in self.lab.domains(self.other()), 40)
            time.sleep(0.5)
            undo = act()
            moving.communicate(timeout=90)
            if undo:
                undo()
        self.case(name, both, expected)

    def uplink(self, node, state):
        self.lab("lab", "exec", node, "--", "ip", "link", "set", "up0", state)

    def cut_link(self):
        node = self.other()
        self.uplink(node, "down")
        return lambda: self.uplink(node, "up")

    def kill_daemon(self, node):
        os.kill(pid_in("/run/godwit/%s/%s/pid" % (lab_name(), node)), 0)
        parent = pid_in("/run/godwit/%s/%s/pid" % (lab_name(), node))
        # The one that is kept alive is its child.
        with open("/proc/%d/task/%d/children" % (parent, parent)) as text:
            os.kill(int(text.read().split()[0]), signal.SIGKILL)

    def kill_relay(self, node):
        """Or nothing, between two of them."""
        with open("/run/godwit/%s/%s/pid" % (lab_name(), node)) as text:
            keeper = text.read().split()[0]
        for daemon in children(keeper):
            for pid in children(daemon):
                with contextlib.suppress(OSError), open("/proc/%s/comm" % pid) as text:
                    if text.read().strip() == "godwit-mover":
                        os.kill(int(pid), signal.SIGKILL)

    def kill_libvirt(self, node):
        pid = "/run/godwit/%s/%s/libvirt/pid" % (lab_name(), node)
        os.kill(pid_in(pid), signal.SIGKILL)
        # `up` starts what has died again.
        time.sleep(0.2)
        self.lab("lab", "up", "--vm", "--nodes", "2", timeout=60)


def main():
    expect_libvirt()
    faults = Faults()
    try:
        with VmLab(sys.argv[1]) as lab:
            it = Breaking(lab, faults)
            it.fault("node.before_mover", "error", False)
            it.fault("node.before_mover", "kill", False)
            it.fault("node.switch_vm", "error", False)
            it.fault("node.switch_vm", "kill", False)
            it.fault("node.before_commit", "error", False)
            it.fault("node.before_commit", "kill", False)
            it.fault("node.after_commit", "error", True)
            it.fault("node.after_commit", "kill", True)
            it.fault("node.taking_down", "kill", True)
            it.while_limited("source's daemon killed", lambda: it.kill_daemon(it.at))
            it.while_limited("destination's daemon killed", lambda: it.kill_daemon(it.other()))
            it.while_limited("link cut", it.cut_link)
            it.while_limited("link cut in the disk's copy", it.cut_link, bandwidth="1MiB")
            it.while_limited("destination's libvirt killed", lambda: it.kill_libvirt(it.other()))
            it.while_limited("source's libvirt killed", lambda: it.kill_libvirt(it.at))
            it.case("a move", lambda: lab.move("web", it.other()), True)
    finally:
        faults.remove()
    return 0


if __name__ == "__main__":
    sys.exit(main())
