"""What the fault tests look at and break: fault points, processes, what a service leaves on a node."""

import contextlib
import glob
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
from godwit_lab import Failure, lab_id, lab_name, wait_for  # noqa: E402


class Faults:
    """One armed fault point for all processes of the lab, which inherit the variable."""

    def __init__(self):
        self.folder = tempfile.mkdtemp(prefix="godwit-faults.")
        self.path = os.path.join(self.folder, "fault")
        os.environ["GODWIT_FAULT"] = "@" + self.path

    def arm(self, point, action):
        self.disarm()
        with open(self.path + ".new", "w") as text:
            text.write("%s=%s\n" % (point, action))
        os.rename(self.path + ".new", self.path)

    def disarm(self):
        for path in (self.path, self.path + ".go"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)

    def was_hit(self):
        return not os.path.exists(self.path)

    def hit_by_now(self):
        """A point behind the answer may be hit after it has come."""
        with contextlib.suppress(Failure):
            wait_for("the point", self.was_hit, 5)
        return self.was_hit()

    def go_on(self):
        open(self.path + ".go", "w").close()

    def held(self, lab, point, move, meanwhile, cancel=False):
        """`godwit migrate` with `move` waits at `point` for `meanwhile`, then it goes on or is cancelled.
        Fails unless it ends as it should."""
        self.arm(point, "wait")
        process = subprocess.Popen([lab.godwit, "migrate", *move, "--json"], stdout=subprocess.PIPE,
                                   stderr=subprocess.PIPE, text=True)
        try:
            wait_for("the mover to be at %s" % point, self.was_hit, 30)
            meanwhile()
            if cancel:
                process.send_signal(signal.SIGINT)
            self.go_on()
            out, error = process.communicate(timeout=120)
        finally:
            self.go_on()
            if process.poll() is None:
                process.kill()
                process.wait()
            self.disarm()
        wanted = "rolled_back" if cancel else "moved"
        if json.loads(out)["outcome"] != wanted:
            raise Failure("migrate %s, held at %s, is not %s: %s%s" % (move, point, wanted, out, error))
        return wanted

    def remove(self):
        del os.environ["GODWIT_FAULT"]
        shutil.rmtree(self.folder)


def copies():
    """Processes of the service on the lab's nodes; there may be other labs on the machine."""
    found = []
    for path in glob.glob("/proc/[0-9]*/comm"):
        with contextlib.suppress(OSError):
            with open(path) as text:
                if text.read().strip() != "memory_server":
                    continue
            with open(os.path.join(os.path.dirname(path), "cgroup")) as text:
                if "/godwit/%s-n" % lab_id() in text.read():
                    found.append(int(path.split("/")[2]))
    return found


def shims(node, service):
    """Pids of the shim of a service, or of its replica, at a node of the lab, and of its init."""
    found = []
    wanted = [b"shim", b"--node", ("%s-%s" % (lab_id(), node)).encode(), b"--name", service.encode()]
    for path in glob.glob("/proc/[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            with open(path, "rb") as text:
                words = text.read().split(b"\0")
            if all(word in words for word in wanted):
                found.append(int(path.split("/")[2]))
    return sorted(found)


def movers(parent=None):
    """Pids of those at work; only of the daemon `parent`, if it is named."""
    found = []
    ours = b"GODWIT_FAULT=" + os.environb[b"GODWIT_FAULT"]
    for path in glob.glob("/proc/[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            with open(path, "rb") as text:
                if text.read().split(b"\0")[:2] != [b"godwit", b"mover"]:
                    continue
            with open(os.path.join(os.path.dirname(path), "comm")) as text:
                if text.read().strip() == "godwit-spare":
                    continue
            with open(os.path.join(os.path.dirname(path), "environ"), "rb") as text:
                if ours not in text.read().split(b"\0"):
                    continue
            with open(os.path.join(os.path.dirname(path), "stat")) as text:
                started_by = int(text.read().rsplit(")", 1)[1].split()[1])
            if parent in (None, started_by):
                found.append(int(path.split("/")[2]))
    return found


def merged_maps(pid):
    """Mappings as /proc shows them, neighbours that differ in nothing else as one."""
    result = []
    with open("/proc/%d/maps" % pid) as text:
        for line in text:
            words = line.split(None, 5)
            start, end = (int(each, 16) for each in words[0].split("-"))
            # Of a file, only what goes on in the file as well.
            base = start - int(words[2], 16) if words[4] != "0" else 0
            same = (words[1], words[3], words[4], base, words[5].strip() if len(words) > 5 else "")
            if result and result[-1][1] == start and result[-1][2] == same:
                result[-1] = (result[-1][0], end, same)
            else:
                result.append((start, end, same))
    return result


def inside(pids):
    """What a move that did not happen must leave as it was in each process."""
    result = {}
    for pid in pids:
        folder = "/proc/%d/fd" % pid
        result[pid] = {
            "maps": merged_maps(pid),
            "descriptors": sorted((int(each), os.readlink(os.path.join(folder, each)))
                                  for each in os.listdir(folder)),
        }
    return result


class Lateness:
    """By how much this machine, which may be busy, wakes a process later than it wants, at most."""

    def __init__(self):
        self.ending = threading.Event()
        self.most = 0.0
        self.thread = threading.Thread(target=self.watch, daemon=True)
        self.thread.start()

    def watch(self):
        while not self.ending.is_set():
            begin = time.monotonic()
            time.sleep(0.01)
            self.most = max(self.most, time.monotonic() - begin - 0.01)

    def seconds(self):
        self.ending.set()
        self.thread.join()
        return self.most


class DaemonWatch:
    """For how long a node had no daemon, once one is killed: seconds, from a thread."""

    def __init__(self, pid_of, node):
        self.pid_of = pid_of
        self.before = pid_of(node)
        self.node = node
        self.absent = None
        self.thread = threading.Thread(target=self.watch, daemon=True)
        self.thread.start()

    def alive(self):
        try:
            with open("/proc/%d/stat" % self.before) as text:
                return text.read().rsplit(")", 1)[1].split()[0] not in "ZX"
        except OSError:
            return False

    def watch(self):
        end = time.monotonic() + 60
        while self.alive() and time.monotonic() < end:
            time.sleep(0.002)
        gone = time.monotonic()
        wait_for("another daemon", lambda: self.pid_of(self.node) != self.before, 20)
        self.absent = time.monotonic() - gone

    def seconds(self):
        self.thread.join(20)
        return self.absent or 0.0


def traces(lab, node):
    """All that a service leaves on a node while it is there."""
    found = set()
    for line in lab("lab", "exec", node, "--", "cat", "/proc/net/dev").stdout.splitlines():
        name = line.split(":")[0].strip()
        if name.startswith(("gwp", "gwt")):
            found.add("link " + name)
    for mount in ("/sys/fs/cgroup/unified", "/sys/fs/cgroup"):
        for folder in glob.glob("%s/godwit/%s-%s/*/" % (mount, lab_id(), node)):
            found.add("cgroup " + folder)
    with open("/proc/self/mountinfo") as text:
        for line in text:
            where = line.split()[4]
            if "/%s/%s/services/" % (lab_name(), node) in where:
                found.add("mount " + where)
    for folder in glob.glob("/var/lib/godwit/%s/%s/services/*" % (lab_name(), node)):
        found.add("folder " + folder)
    for folder in glob.glob("/var/lib/godwit/%s/%s/migrations/*" % (lab_name(), node)):
        found.add("journal " + folder)
    return found
