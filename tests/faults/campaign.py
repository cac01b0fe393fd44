#!/usr/bin/env python3
"""Moves of every strategy, each disturbed at random: what becomes of the service, and what is left?

  campaign.py build/godwit [--moves 40] [--seed N]      make faults: 1,000 moves

Each move draws a strategy, a fault and its time from the seed, so that a seed repeats a run (but for what
the machine does meanwhile): a mover or a daemon is killed at a named point (base/fault_point.h) or at any
time, the replica's shim is killed, a node's disk is filled, a link is cut for a while or stalls (a queue
that lets almost nothing through), the user cancels. The
service checks its memory, its clients every answer. After each move there is one copy, it answers, all of its
pages are there, and nothing is left at the other node.

The table has one row a fault. All but the outcomes has to be 0.
"""
import argparse
import collections
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import godwit_lab  # noqa: E402
from breaking import Faults, copies, movers, shims, traces  # noqa: E402
from godwit_lab import Failure, lab_name, wait_for  # noqa: E402
from transaction_test import DESTINATION_STEPS, SOURCE_STEPS, VERIFYING  # noqa: E402

SERVICE, PORT, CONNECTIONS = "svc", 7000, 3
STRATEGIES = ("auto", "precopy", "postcopy", "hybrid", "cold")
POINTS = [step[0] for step in SOURCE_STEPS + DESTINATION_STEPS if step[0] not in VERIFYING] + \
    ["source.left_behind", "source.serve_pages", "pages.serve", "node.pages_complete"]


# The replica stands at these, and the service is the source's.
BEFORE_COMMIT = [step[0] for step in DESTINATION_STEPS
                 if step[1] == "source" and step[0] not in VERIFYING]
DISK_MIB = 96


def other(node):
    return "n2" if node == "n1" else "n1"


def state_folder(node):
    return "/var/lib/godwit/%s/%s" % (lab_name(), node)


class Lab(godwit_lab.Lab):
    """Its daemons keep what they write on disks that can be filled."""

    def prepare(self):
        for node in ("n1", "n2"):
            folder = state_folder(node)
            os.makedirs(folder, exist_ok=True)
            subprocess.run(["mount", "-t", "tmpfs", "-o", "size=%dm" % DISK_MIB, "godwit-test",
                            folder], check=True)
            self.cleanup.callback(subprocess.run, ["umount", "-l", folder], check=True)
        # By what is on those disks it is found.
        self.cleanup.callback(self, "rm", "-f", SERVICE, check=False)


class Campaign:
    def __init__(self, lab, faults, seed):
        self.lab, self.faults, self.random = lab, faults, random.Random(seed)
        address = lab.start(SERVICE, os.path.join(lab.build, "memory_server"), "--port", PORT, "--mib", 24,
                            "--dirty-pages-per-s", 3000, "--threads", 2, "--files", 8, port=PORT)
        self.clients = lab.pulse("echo", address, PORT, connections=CONNECTIONS, interval_us=1000)
        self.rows = collections.OrderedDict()
        self.filler = None

    # -- what is done to a move

    def daemon_pid(self, node):
        with open("/run/godwit/%s/%s/pid" % (lab_name(), node)) as text:
            keeper = int(text.read().split()[0])

        def child():
            with open("/proc/%d/task/%d/children" % (keeper, keeper)) as text:
                return [int(each) for each in text.read().split()]
        return wait_for("the daemon of %s" % node, child, 20)[0]

    def some_time(self):
        time.sleep(self.random.random() ** 2 * 0.8)

    def none(self, _):
        pass

    def killed_at_a_point(self, _):
        point = self.random.choice(POINTS)
        self.faults.arm(point, "kill")
        return point

    def error_at_a_point(self, _):
        point = self.random.choice(POINTS)
        self.faults.arm(point, "error")
        return point

    def mover_killed(self, _):
        self.some_time()
        pids = sorted(movers())
        for pid in self.random.sample(pids, min(1, len(pids))):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def daemon_killed(self, _):
        self.some_time()
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.daemon_pid(self.random.choice(("n1", "n2"))), signal.SIGKILL)

    def link_cut(self, _):
        self.some_time()
        node = self.random.choice(("n1", "n2"))
        self.lab("lab", "exec", node, "--", "ip", "link", "set", "up0", "down")
        time.sleep(self.random.choice((0.05, 0.5, 3)))
        self.lab("lab", "exec", node, "--", "ip", "link", "set", "up0", "up")

    def link_stalled(self, _):
        self.some_time()
        node = self.random.choice(("n1", "n2"))
        self.lab("lab", "exec", node, "--", "tc", "qdisc", "add", "dev", "up0", "root", "tbf", "rate",
                 "8kbit", "burst", "1600", "limit", "3000")
        time.sleep(self.random.choice((0.3, 1.5, 4)))
        self.lab("lab", "exec", node, "--", "tc", "qdisc", "del", "dev", "up0", "root")

    def shim_killed(self, process):
        """The replica's; a service ends with its shim."""
        destination = other(self.source)
        point = self.random.choice(BEFORE_COMMIT)
        self.faults.arm(point, "stall")
        wait_for("the move to come to %s" % point,
                 lambda: self.faults.was_hit() or process.poll() is not None, 30)
        if self.faults.was_hit():
            for pid in shims(destination, SERVICE):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self.faults.go_on()
        return point

    def disk_full(self, process):
        self.some_time()
        self.filler = os.path.join(state_folder(self.random.choice(("n1", "n2"))), "filler")
        with contextlib.suppress(OSError), open(self.filler, "wb", buffering=0) as text:
            for size in (1 << 20, 1 << 12):
                with contextlib.suppress(OSError):
                    while True:
                        text.write(bytes(size))

    def free_disk(self):
        if self.filler:
            os.unlink(self.filler)
            self.filler = None

    def cancelled(self, process):
        self.some_time()
        process.send_signal(signal.SIGINT)

    FAULTS = (none, killed_at_a_point, killed_at_a_point, error_at_a_point, mover_killed, mover_killed,
              daemon_killed, link_cut, link_stalled, cancelled, shim_killed, disk_full)

    # -- one move

    def owner(self):
        def settled():
            try:
                shown = self.lab.inspect(SERVICE)
            except Failure:  # its daemon has just been killed
                return None
            done = shown["state"] == "running" and not shown["pages_at"]
            return shown["node"] if done else None
        return wait_for("one owner, and all pages there", settled, 60)

    def move(self, number):
        strategy = self.random.choice(STRATEGIES)
        fault = self.random.choice(self.FAULTS)
        source = self.source = self.owner()
        options = ["--bandwidth", "20MiB"] if self.random.random() < 0.3 else []
        process = subprocess.Popen([self.lab.godwit, "migrate", SERVICE, other(source), "--json",
                                    "--strategy", strategy, *options], stdout=subprocess.PIPE,
                                   stderr=subprocess.PIPE, text=True)
        point = fault(self, process)
        try:
            out, _ = process.communicate(timeout=120)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            raise Failure("migrate did not end in 120 s")
        self.faults.disarm()
        self.free_disk()
        outcome = "none"
        with contextlib.suppress(ValueError):
            outcome = json.loads(out)["outcome"]
        what = fault.__name__.replace("_", " ")
        row = self.rows.setdefault(what, collections.Counter())
        row["moves"] += 1
        row[outcome] += 1
        gap = self.check(row)
        row["gap"] = max(row["gap"], gap)
        print("%4d %-9s %-18s %-24s %-11s longest gap %.0f ms" %
              (number, strategy, what, point or "", outcome, gap / 1000), flush=True)

    def check(self, row):
        owner = self.owner()
        gap, answered, end = 0, 0, time.monotonic() + 30
        waiting = True  # a connection that is still backing off belongs to this move, not to the next
        while answered < 100 or waiting:
            seen = self.clients.mark()
            waiting = seen["waiting_us"] > 100000
            answered += seen["checked"]
            gap = max(gap, seen["longest_gap_us"])
            row["wrong"] += seen["wrong"]
            row["lost"] += seen["lost"]
            if seen["alive"] != CONNECTIONS or seen["wrong"] or seen["lost"]:
                row["connections lost"] += CONNECTIONS - seen["alive"]
                raise Failure("clients: %s" % json.dumps(seen))
            if time.monotonic() > end:
                raise Failure("clients get no answers: %s" % json.dumps(seen))
            time.sleep(0.02)
        empty = other(owner)

        def clean():
            return not traces(self.lab, empty) and not movers() and len(copies()) == 1
        try:
            wait_for("clean", clean, 40)
        except Failure:
            row["residue"] += 1
            raise Failure("left on %s: %s; movers %s; copies %s" %
                          (empty, sorted(traces(self.lab, empty)), movers(), copies()))
        return gap

    def table(self):
        head = ["fault", "moves", "moved", "rolled_back", "none", "wrong", "lost", "connections lost",
                "residue"]
        print("\n| " + " | ".join(head) + " | longest gap, ms |\n" + "|---" * (len(head) + 1) + "|")
        for what, row in self.rows.items():
            print("| %s | " % what + " | ".join(str(row[name]) for name in head[1:]) +
                  " | %.0f |" % (row["gap"] / 1000))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("godwit")
    parser.add_argument("--moves", type=int, default=40)
    parser.add_argument("--seed", type=int, default=None)
    options = parser.parse_args()
    seed = random.randrange(2 ** 31) if options.seed is None else options.seed
    print("seed %d" % seed, flush=True)
    faults = Faults()
    try:
        with Lab(options.godwit) as lab:
            campaign = Campaign(lab, faults, seed)
            try:
                for number in range(1, options.moves + 1):
                    campaign.move(number)
                total = campaign.clients.finish()
                if total["total_wrong"] or total["total_lost"] or total["reopened"]:
                    raise Failure("clients: %s" % total)
                print("%d answers checked, 0 wrong, 0 lost, 0 reopened" % total["total_checked"])
            finally:
                campaign.table()
    finally:
        faults.remove()
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Failure as failure:
        print("campaign: %s" % failure, file=sys.stderr)
        sys.exit(1)
