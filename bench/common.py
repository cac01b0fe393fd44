"""What the benchmarks share: a service of a given size, moves there and back, medians.

Both nodes, the client and everything else share this machine, so figures are medians of moves in
one run, and what they are compared with is measured in the same run.
"""

import os
import statistics
import subprocess
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "tests"))
import godwit_lab  # noqa: E402

MOVES = int(os.environ.get("GODWIT_MOVES", "10"))
PORT = 7000


def median(values):
    return statistics.median(values) if values else float("nan")


def spread(values, unit=1.0):
    """'median (min - max)' of values / unit."""
    if not values:
        return "-"
    return "%.2f (%.2f - %.2f)" % (median(values) / unit, min(values) / unit, max(values) / unit)


def in_node(node, *command):
    """A command line that runs in a node's network namespace."""
    return ["ip", "netns", "exec", "%s-%s" % (godwit_lab.lab_id(), node), *map(str, command)]


def memory_server_command(lab, mib, dirty=0, threads=0, files=0):
    return [str(word) for word in (
        os.path.join(lab.build, "memory_server"), "--port", PORT, "--mib", mib,
        "--dirty-pages-per-s", dirty, "--threads", threads, "--files", files)]


def memory_server(lab, name, *load, **more):
    return lab.start(name, *memory_server_command(lab, *load, **more), port=PORT, timeout=120)


def wait_until_the_host_is_quiet():
    """Where the kernel says how much freed memory went to the host: until no more does."""
    end = time.monotonic() + 90
    last, since = None, 0
    while time.monotonic() < end:
        try:
            with open("/sys/module/page_reporting/parameters/reported_kib") as text:
                reported = text.read()
        except OSError:
            return
        if reported != last:
            last, since = reported, time.monotonic()
        if time.monotonic() - since > 4.5:
            return
        time.sleep(0.1)


class Warmth:
    """What a move takes was touched before, and the host of a virtual machine takes little of it
    back meanwhile (see warm.py). Elsewhere nothing is held."""

    def __init__(self, mib):
        self.holder = None
        with open("/proc/cpuinfo") as text:
            virtual = any(line.startswith("flags") and " hypervisor" in line for line in text)
        if virtual:
            self.holder = subprocess.Popen(
                [sys.executable, os.path.join(os.path.dirname(__file__), "warm.py"), str(mib)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1,
                start_new_session=True)
        self.hold()

    def __enter__(self):
        return self

    def hold(self):
        """As much as at first."""
        if self.holder is not None:
            self.holder.stdin.write("\n")
            self.holder.stdout.readline()

    def __exit__(self, kind, value, trace):
        if self.holder is not None:
            self.holder.stdin.close()
            self.holder.wait(60)


def moves(lab, name, client, mib, count=MOVES, options=()):
    """Moves there and back; the first two do not count: what the service got at its start are
    small pages, afterwards they are what a move makes."""
    results = []
    with Warmth(mib + 256) as memory:
        wait_until_the_host_is_quiet()
        for i in range(count + 2):
            time.sleep(0.3 + mib / 8192)  # until the source of the move before is gone
            memory.hold()
            client.mark()
            moved = lab.move(name, "n2" if i % 2 == 0 else "n1", *options, timeout=300)
            time.sleep(0.05)
            seen = client.mark()
            if seen["wrong"] or seen["lost"]:
                raise godwit_lab.Failure("wrong or lost answers: %s" % seen)
            moved["gap_ns"] = seen["longest_gap_us"] * 1000
            if i >= 2:
                results.append(moved)
    return results


def daemon_cpu_seconds():
    """User and system time of the lab's daemons and of the movers they have reaped."""
    ticks = 0
    for pid in os.listdir("/proc"):
        if not pid.isdigit():
            continue
        try:
            with open("/proc/%s/cmdline" % pid, "rb") as text:
                words = text.read().split(b"\0")
            if b"node" not in words or not words[0].endswith(b"godwit"):
                continue
            with open("/proc/%s/stat" % pid) as text:
                fields = text.read().rpartition(")")[2].split()
        except OSError:
            continue
        ticks += sum(int(f) for f in fields[11:15])
    return ticks / os.sysconf("SC_CLK_TCK")
