"""What would CRIU do? The same server and the same client; the process is moved by `criu`.

$CRIU names the program (`make bench CRIU=...`); without it nothing is asked. It is spared what it
would need besides: both ends have a pid and a network namespace ready, images are copied within
memory, pages go over a link of their own, and the address moves by one link that goes down and
another that comes up. A client's packets are lost meanwhile, as CRIU's own lock would have it, and
sent again by its timer. Two ways of CRIU's:

  pages first  dump to a page server at the destination, images copied, restore
  pages after  dump that keeps the pages, images copied, restore with a lazy-pages daemon

Its pre-dump needs soft-dirty bits (CONFIG_MEM_SOFT_DIRTY), which many kernels are built without.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time

import common
import gap

ADDRESS = "10.77.127.9"
MAC = "02:47:57:00:00:09"
PORT = 27

# Reaps whatever ends, as pid 1 of a host does. It says by which number the machine knows it.
INIT = """
import os, signal, subprocess, sys
print(os.readlink("/proc/self"), flush=True)
subprocess.run(["mount", "-t", "proc", "proc", "/proc"], check=True)
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
print("ready", flush=True)
sys.stdin.read()
"""


def ip(*arguments):
    common.godwit_lab.run("ip", *arguments)


class LargePipes:
    """CRIU makes pipes of 4 MiB, which without CAP_SYS_RESOURCE need the system's leave (pipe(7))."""

    path = "/proc/sys/fs/pipe-max-size"

    def set(self, value):
        with open(self.path) as text:
            before = text.read()
        with open(self.path, "w") as text:
            text.write(value)
        return before

    def __enter__(self):
        self.before = self.set(str(4 << 20))

    def __exit__(self, kind, value, trace):
        self.set(self.before)


class Side:
    """A network namespace on a node's bridge with a pid namespace in it, and a folder for images."""

    def __init__(self, number, folder):
        self.number = number
        self.name = "%s-criu%d" % (common.godwit_lab.lab_id(), number)
        self.node = common.in_node("n%d" % number)[3]
        self.images = os.path.join(folder, self.name)
        self.link_address = "10.78.0.%d" % number
        self.init = None

    def make(self):
        ip("netns", "add", self.name)
        ip("link", "add", self.name, "netns", self.node, "type", "veth", "peer", "name", "eth0",
           "address", MAC, "netns", self.name)
        ip("-n", self.node, "link", "set", self.name, "master", "gw0")
        ip("-n", self.name, "address", "add", ADDRESS + "/16", "dev", "eth0")
        ip("-n", self.name, "link", "set", "lo", "up")
        ip("-n", self.name, "link", "set", "eth0", "up")

    def start_init(self):
        # After all namespaces were made: it sees the names that were there when it began.
        self.init = subprocess.Popen(
            ["ip", "netns", "exec", self.name, "unshare", "--pid", "--fork", "--kill-child",
             "--propagation", "private", "--mount", sys.executable, "-c", INIT],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.pid = int(self.init.stdout.readline())
        self.init.stdout.readline()

    def inside(self, *command):
        return ["nsenter", "-t", str(self.pid), "-m", "-n", "-p", *map(str, command)]

    def start(self, *command):
        """In a session of its own; its pid inside. Its numbers are free at the other end as well."""
        line = "echo 10000 >/proc/sys/kernel/ns_last_pid; setsid %s </dev/null >/dev/null 2>&1 & echo $!" % " ".join(map(str, command))
        return common.godwit_lab.run(*self.inside("sh", "-c", line)).stdout.strip()

    def criu(self, action, *options):
        os.makedirs(self.images, exist_ok=True)
        return subprocess.Popen(
            self.inside(os.environ["CRIU"], action, "-D", self.images, "-o", action + ".log", "-v2",
                        *options), stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def ended(self, process, action, timeout=600):
        if process.wait(timeout) != 0:
            with open(os.path.join(self.images, action + ".log"), errors="replace") as text:
                raise common.godwit_lab.Failure("criu %s: %s" % (action, text.read()[-2000:]))

    def wait_until_criu_listens(self, process, action):
        def listens():
            if process.poll() is not None:
                self.ended(process, action)
            with open("/proc/%d/net/tcp" % self.pid) as text:
                return ":%04X 00000000:0000 0A" % PORT in text.read()
        common.godwit_lab.wait_for("criu " + action, listens, 120)

    def end(self):
        if self.init is not None:
            self.init.stdin.close()
            self.init.wait(20)
        # The namespace goes later, and its links with it.
        for command in (["-n", self.node, "link"], ["netns"]):
            common.godwit_lab.run("ip", *command, "delete", self.name, check=False)


class Pair:
    def __init__(self):
        self.folder = tempfile.mkdtemp(prefix="godwit-criu-", dir="/dev/shm")
        self.sides = []

    def __enter__(self):
        try:
            for number in (1, 2):
                self.sides.append(Side(number, self.folder))
                self.sides[-1].make()
            a, b = self.sides
            ip("link", "add", "eth1", "netns", a.name, "type", "veth", "peer", "name", "eth1",
               "netns", b.name)
            for side in self.sides:
                ip("-n", side.name, "address", "add", side.link_address + "/24", "dev", "eth1")
                ip("-n", side.name, "link", "set", "eth1", "up")
                side.start_init()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, kind, value, trace):
        for side in self.sides:
            side.end()
        shutil.rmtree(self.folder)

    def script(self, name, side, state):
        """Run by criu at each of its steps: `name` puts the side's link up or down."""
        path = os.path.join(self.folder, "%s-%s" % (side.name, name))
        with open(path, "w") as text:
            text.write("#!/bin/sh\n[ \"$CRTOOLS_SCRIPT_ACTION\" = %s ] || exit 0\n"
                       "exec ip -n %s link set %s %s\n" % (name, side.node, side.name, state))
        os.chmod(path, 0o755)
        return ("--action-script", path)

    def move(self, pid, source, target, lazy):
        both = ("--tcp-established", "--manage-cgroups=ignore")
        dump = ("-t", pid, "--network-lock", "skip", *both,
                *self.script("pre-dump", source, "down"))
        restore = ("-d", *both, *self.script("post-restore", target, "up"))
        begin = time.monotonic()
        for side in (source, target):
            shutil.rmtree(side.images, ignore_errors=True)
        if lazy:
            dumping = source.criu("dump", "--lazy-pages", "--address", source.link_address, "--port",
                                  PORT, *dump)
            source.wait_until_criu_listens(dumping, "dump")
            shutil.copytree(source.images, target.images)
            pages = target.criu("lazy-pages", "--page-server", "--address", source.link_address,
                                "--port", PORT)
            common.godwit_lab.wait_for("the lazy-pages daemon", lambda: os.path.exists(
                os.path.join(target.images, "lazy-pages.socket")))
            target.ended(target.criu("restore", "--lazy-pages", *restore), "restore")
            target.ended(pages, "lazy-pages")
            source.ended(dumping, "dump")
        else:
            server = target.criu("page-server", "--address", target.link_address, "--port", PORT)
            target.wait_until_criu_listens(server, "page-server")
            source.ended(source.criu("dump", "--page-server", "--address", target.link_address,
                                     "--port", PORT, *dump), "dump")
            target.ended(server, "page-server")
            shutil.copytree(source.images, target.images, dirs_exist_ok=True)
            target.ended(target.criu("restore", *restore), "restore")
        return time.monotonic() - begin


def moves(lab, mib, lazy, count, **load):
    with LargePipes(), Pair() as pair:
        here, there = pair.sides
        command = common.memory_server_command(lab, mib, load.get("dirty", 0),
                                               load.get("threads", 0), load.get("files", 0))
        # CRIU's end a wait with EINTR, which programs usually take; the server calls it wrong.
        pid = here.start(*command, "--interruptible", 1)
        ip("-n", here.node, "link", "set", here.name, "up")
        lab.wait_until_it_listens("the server", ADDRESS, common.PORT, 120)
        extra = None
        if load.get("connections", 1) > 1:
            extra = lab.pulse("echo", ADDRESS, common.PORT, connections=load["connections"] - 1,
                              interval_us=1000000)
        client = lab.pulse("echo", ADDRESS, common.PORT)
        time.sleep(1)
        gaps, totals = [], []
        for _ in range(count):
            client.mark()
            totals.append(pair.move(pid, here, there, lazy))
            # Its retransmissions are each twice as long after the one before (RFC 6298).
            time.sleep(1 + 2 * totals[-1])
            seen = client.mark(timeout=60)
            if seen["wrong"] or seen["lost"] or not seen["checked"]:
                raise common.godwit_lab.Failure("wrong or lost answers: %s" % seen)
            gaps.append(seen["longest_gap_us"])
            here, there = there, here
        if extra is not None:
            seen = extra.finish()
            if seen["total_wrong"] or seen["total_lost"]:
                raise common.godwit_lab.Failure("the other connections: %s" % seen)
        client.finish()
        return gaps, totals


def row(lab, title, mib, count, **load):
    ours = gap.row(lab, title, "", mib, **load)
    first, after = (moves(lab, mib, lazy, count, **load) for lazy in (False, True))
    return [title, ours[2], ours[5], common.spread(first[0], 1e3), common.spread(first[1]),
            common.spread(after[0], 1e3), common.spread(after[1])]


def run(lab, quick):
    head = ["service", "Godwit: gap, ms", "total, s", "CRIU, pages first: gap, ms", "total, s",
            "CRIU, pages after: gap, ms", "total, s"]
    if not os.environ.get("CRIU"):
        raise common.godwit_lab.Failure("CRIU=... is to name the program")
    version = common.godwit_lab.run(os.environ["CRIU"], "--version").stdout.split()[1]
    count = 2 if quick else 4
    rows = [row(lab, "16 MiB", 16, count),
            row(lab, "1 GiB, 1,000 pages/s dirtied", 1024, count, dirty=1000)]
    if not quick:
        rows.append(row(lab, "4 GiB, 20,000 pages/s dirtied", 4096, 2, dirty=20000))
    rows.append(row(lab, "256 MiB, 100 threads, 1,000 descriptors, 1,000 connections", 256, count,
                    threads=98, files=1000, connections=1000))
    return "Beside CRIU %s" % version, head, rows
