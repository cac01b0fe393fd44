#!/usr/bin/env python3
"""What a move or a checkpoint needs runs out on the way: the error names it, the service runs on where
it was with its clients, nothing is left behind, and with enough room the same goes through.

  exhaustion_test.py GODWIT
"""

import contextlib
import glob
import json
import os
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
from godwit_lab import Failure, Lab, lab_name, wait_for  # noqa: E402

PORT = 7000
MIB = 1 << 20
MEMORY = "/sys/fs/cgroup/memory"


def state():
    """Of the services of n2, in the lab that this test has taken."""
    return "/var/lib/godwit/%s/n2/services" % lab_name()


@contextlib.contextmanager
def small_file_system(where, mib, inodes=10000):
    os.makedirs(where, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=%dm,nr_inodes=%d" % (mib, inodes),
                    "godwit-test", where], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", where], check=True)


@contextlib.contextmanager
def little_memory(lab, node, mib):
    """The node's daemon and all that it has started or starts from now on have that much."""
    group = os.path.join(MEMORY, "godwit-test-%d" % os.getpid())
    os.mkdir(group)

    def move_all(to):
        with open("/run/godwit/%s/%s/pid" % (lab_name(), node)) as text:
            pids = [int(text.read().split()[0])]
        # The keeper, its daemon, and the mover that the daemon has started ahead.
        for pid in pids:
            for thread in glob.glob("/proc/%d/task/*/children" % pid):
                with open(thread) as text:
                    pids += [int(each) for each in text.read().split()]
            with contextlib.suppress(ProcessLookupError):
                with open(os.path.join(to, "cgroup.procs"), "w") as procs:
                    procs.write(str(pid))
    try:
        with open(os.path.join(group, "memory.limit_in_bytes"), "w") as limit:
            limit.write(str(mib * MIB))
        move_all(group)
        yield
    finally:
        move_all(MEMORY)

        def removed():
            with contextlib.suppress(OSError):
                os.rmdir(group)
            return not os.path.exists(group)
        wait_for("%s to be empty" % group, removed, 20)


class Service:
    def __init__(self, lab):
        self.lab = lab
        self.address = lab.start("svc", os.path.join(lab.build, "memory_server"), "--port", PORT,
                                 "--mib", 160, "--dirty-pages-per-s", 500, "--threads", 2,
                                 "--files", 4, port=PORT)
        self.clients = lab.pulse("echo", self.address, PORT, connections=2, interval_us=1000)

    def still_here(self, node, what):
        end = time.monotonic() + 10
        checked = 0
        while checked < 50:
            seen = self.clients.mark()
            if seen["wrong"] or seen["lost"]:
                raise Failure("%s: clients: %s" % (what, json.dumps(seen)))
            checked += seen["checked"]
            if time.monotonic() > end:
                raise Failure("%s: no answers: %s" % (what, json.dumps(seen)))
            time.sleep(0.05)
        shown = self.lab.inspect("svc")
        if (shown["node"], shown["state"]) != (node, "running"):
            raise Failure("%s: %s on %s" % (what, shown["state"], shown["node"]))

    def moves(self, node):
        self.lab.move("svc", node)
        self.still_here(node, "moved to %s" % node)

    def must_fail(self, what, words, *command):
        done = self.lab(*command, check=False, timeout=120)
        said = done.stdout + done.stderr
        if done.returncode == 0 or not any(each in said for each in words):
            raise Failure("%s: exit code %d, %s" % (what, done.returncode, said))
        print("%s: %s" % (what, said.strip().splitlines()[-1][:160]), flush=True)
        self.still_here("n1", what)

        def clean():
            return not glob.glob(state() + "/*/") and \
                not glob.glob("/var/lib/godwit/%s/*/migrations/*" % lab_name())
        wait_for("%s: nothing to be left" % what, clean, 20)


def disk_full_at_a_checkpoint(lab, service):
    with tempfile.TemporaryDirectory(prefix="godwit-test-") as folder, \
            small_file_system(folder, 20):
        path = os.path.join(folder, "image.gw")
        service.must_fail("checkpoint on a full disk", ["No space left on device"],
                          "checkpoint", "svc", "-o", path, "--leave-running")
        service.must_fail("checkpoint that ends it, on a full disk", ["No space left on device"],
                          "checkpoint", "svc", "-o", path)
        if os.listdir(folder):
            raise Failure("left behind: %s" % os.listdir(folder))
    with tempfile.TemporaryDirectory(prefix="godwit-test-") as folder:
        lab("checkpoint", "svc", "-o", os.path.join(folder, "image.gw"), "--leave-running")
    service.still_here("n1", "after a checkpoint with room")


def disk_full_at_the_destination(lab, service):
    lab("exec", "svc", "--", "dd", "if=/dev/urandom", "of=/var/tmp/big", "bs=1M", "count=24")
    with small_file_system(state(), 8):
        # Seen before anything is sent.
        service.must_fail("file layer on a full disk", ["No space left on device"],
                          "migrate", "svc", "n2")
    lab("exec", "svc", "--", "sh", "-c",
        "mkdir /var/tmp/many; for i in $(seq 300); do echo $i > /var/tmp/many/$i; done")
    with small_file_system(state(), 64, 150):
        # It has room for the bytes but not for the names: found out on the way.
        service.must_fail("file layer on a disk that becomes full", ["No space left on device"],
                          "migrate", "svc", "n2")
    service.moves("n2")
    service.moves("n1")
    lab("exec", "svc", "--", "rm", "-r", "/var/tmp/big", "/var/tmp/many")


def memory_full_at_the_destination(lab, service):
    if not os.path.exists(os.path.join(MEMORY, "memory.limit_in_bytes")):
        print("memory full at the destination: skipped, no memory controller of cgroup v1")
        return
    with little_memory(lab, "n2", 120):
        # The kernel ends a husk, or the mover that fills it.
        service.must_fail("memory full", ["want of memory", "mover"], "migrate", "svc", "n2")
    service.moves("n2")
    service.moves("n1")


def main():
    with Lab(sys.argv[1]) as lab:
        service = Service(lab)
        service.still_here("n1", "at the beginning")
        disk_full_at_a_checkpoint(lab, service)
        disk_full_at_the_destination(lab, service)
        memory_full_at_the_destination(lab, service)
        total = service.clients.finish()
        print("%d answers checked, %d wrong, %d lost" % (
            total["total_checked"], total["total_wrong"], total["total_lost"]))
        if total["total_wrong"] or total["total_lost"]:
            raise Failure("clients: %s" % json.dumps(total))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Failure as problem:
        print("FAILED: %s" % problem)
        sys.exit(1)
