#!/usr/bin/env python3
"""The transaction: whatever breaks at whatever step of a move, the service answers at exactly one
node, its clients keep their connections, and nothing stays behind at the other.

  transaction_test.py GODWIT [--part NAME]... [--list] [--only TEXT]

Parts: kill, error (of movers and daemons at each named fault point, base/fault_point.h), daemons
(SIGKILL at a step; the lab starts them again), undo (of a killed mover's work, killed as well),
links (the uplink of a node is cut), cancel (Ctrl-C), strangers (on the mover's port).
$GODWIT_FAULTS=all runs every step, otherwise a share.
Prints a line a case: what was broken, where the service is, the clients' longest gap.
"""

import argparse
import contextlib
import glob
import json
import os
import signal
import subprocess
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
from breaking import DaemonWatch, Faults, Lateness, copies, inside, movers, traces  # noqa: E402
from godwit_lab import Failure, Lab, lab_name, wait_for  # noqa: E402

SERVICE = "svc"
PORT = 7000
# Where a daemon has to be started again, from the moment on when it is. On a machine that wakes its
# processes late, the time of some steps more.
SOON_US = 1e6
LATE_STEPS = 10

# Step -> who has it afterwards: "source", "destination", or "one" of them where the store may have
# been asked already. Those marked True are in the share that always runs.
SOURCE_STEPS = [
    ("node.marked", "source", True),
    ("node.before_mover", "source", True),
    ("source.connected", "source", False),
    ("source.start_tracking", "source", False),
    ("source.uffd_inside", "source", True),
    ("source.prepared", "source", True),
    ("source.round", "source", False),
    ("source.send_files", "source", False),
    ("source.send_pages", "source", False),
    ("pages.scan", "source", False),
    ("pages.send", "source", True),
    ("source.round_done", "source", False),
    ("source.freeze", "source", False),
    ("source.frozen", "source", True),
    ("source.final_state", "source", False),
    ("source.final_pages", "source", False),
    ("source.send_hashes", "source", False),
    ("source.before_end_mark", "source", True),
    ("source.after_end_mark", "one", True),
]
DESTINATION_STEPS = [
    ("destination.connected", "source", False),
    ("replica.apply", "source", False),
    ("replica.compare_files", "source", False),
    ("replica.apply_sections", "source", False),
    ("replica.map_memory", "source", True),
    ("replica.make_description", "source", False),
    ("replica.apply_pages", "source", True),
    ("pages.apply", "source", False),
    ("destination.round_done", "source", False),
    ("replica.restore_tasks", "source", True),
    ("replica.end_comparison", "source", True),
    ("destination.received", "source", False),
    ("replica.make_ready", "source", False),
    ("destination.ready", "source", True),
    ("node.before_commit", "source", True),
    ("node.after_commit", "destination", True),
    ("destination.committed", "destination", True),
    ("destination.settled", "destination", True),
]
# Reached only by moves that are verified.
VERIFYING = {"source.send_hashes", "replica.end_comparison"}
# What a rollback itself goes through: reached by cancelling.
THAW_STEP = "source.thaw"


def other(node):
    return "n2" if node == "n1" else "n1"


class Transactions:
    def __init__(self, lab, faults, subject):
        self.lab = lab
        self.faults = faults
        address = lab.start(SERVICE, subject, "--port", PORT, "--mib", 16,
                            "--dirty-pages-per-s", 2000, "--threads", 2, "--files", 8, port=PORT)
        self.address = address
        self.clients = lab.pulse("echo", address, PORT, connections=3, interval_us=1000)
        self.rows = []
        self.problems = []
        self.gap = 0.0
        self.answers_again()  # its connections belong to the program as it is before each case

    # -- what a case is made of

    def source(self):
        return self.lab.inspect(SERVICE)["node"]

    def start_migration(self, node, *options):
        return subprocess.Popen([self.lab.godwit, "migrate", SERVICE, node, "--json",
                                 *map(str, options)], stdout=subprocess.PIPE,
                                stderr=subprocess.PIPE, text=True)

    def finish_migration(self, process, timeout=60):
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            raise Failure("migrate did not end in %s s" % timeout)
        try:
            said = json.loads(out)
            if said.get("error"):
                print("  %s: %s" % (said["outcome"], said["error"]), flush=True)
            return said["outcome"], process.returncode
        except ValueError:
            return "error: " + err.strip().splitlines()[-1] if err.strip() else "error", \
                process.returncode

    def wait_hit(self, point):
        wait_for("fault point %s" % point, self.faults.was_hit, 20)

    def daemon_pid(self, node):
        """The lab's daemons have a keeper, which starts them again when they are killed."""
        with open("/run/godwit/%s/%s/pid" % (lab_name(), node)) as text:
            keeper = int(text.read().split()[0])
        def child():
            with open("/proc/%d/task/%d/children" % (keeper, keeper)) as text:
                return [int(each) for each in text.read().split()]
        return wait_for("the daemon of %s" % node, child, 10)[0]

    def kill_daemon(self, node):
        before = self.daemon_pid(node)
        os.kill(before, signal.SIGKILL)
        wait_for("another daemon", lambda: self.daemon_pid(node) != before, 10)

    def uplink(self, node, state):
        self.lab("lab", "exec", node, "--", "ip", "link", "set", "up0", state)

    def answers_again(self, timeout=20):
        """Until every client has had an answer; their longest gap since the case began."""
        end = time.monotonic() + timeout
        answered = 0
        while answered < 2:
            seen = self.clients.mark()
            self.gap = max(self.gap, seen["longest_gap_us"])
            if seen["wrong"] or seen["lost"]:
                raise Failure("clients: %s" % json.dumps(seen))
            answered = answered + 1 if seen["checked"] > 20 else 0
            if time.monotonic() > end:
                raise Failure("clients get no answers: %s" % json.dumps(seen))
            time.sleep(0.15)
        return self.gap

    def check_one_copy(self, owner):
        def settled():
            shown = self.lab.inspect(SERVICE)
            return shown["node"] == owner and shown["state"] == "running"
        wait_for("%s to run on %s by the store" % (SERVICE, owner), settled, 10)
        listed = json.loads(self.lab("ps", "--json").stdout)
        where = [each["node"] for each in listed if each["name"] == SERVICE]
        if where != [owner]:
            raise Failure("ps says %s" % where)
        empty = other(owner)

        # A mover has ended before its daemon, which may have no time, takes out its note.
        def of_a_move():
            return {each for each in traces(self.lab, owner)
                    if each.startswith(("journal", "link gwt"))}

        def clean():
            return not traces(self.lab, empty) and not movers() and len(copies()) == 1 and \
                not of_a_move()
        try:
            wait_for("clean", clean, 25)
        except Failure:
            raise Failure("left on %s: %s; on %s: %s; movers %s; copies %s" %
                          (empty, sorted(traces(self.lab, empty)), owner, sorted(of_a_move()),
                           movers(), copies()))

    def check_inside(self, before):
        def difference():
            after = inside(copies())
            return {"process %d, %s" % (pid, what):
                    (sorted(set(before[pid][what]) - set(after.get(pid, before[pid])[what])),
                     sorted(set(after.get(pid, before[pid])[what]) - set(before[pid][what])))
                    for pid in before for what in before[pid]
                    if before[pid][what] != after.get(pid, before[pid])[what]}
        try:
            wait_for("the program as it was", lambda: not difference(), 5)
        except Failure:
            raise Failure("not as before (gone, new): %s" % difference())

    def case(self, name, expected, act, limit_us=None, restarts=None):
        """act(source, destination) breaks something and returns the outcome as the user sees it.
        `restarts`: of "source" or "destination" the daemon is killed on the way."""
        source = self.source()
        destination = other(source)
        watch = restarts and DaemonWatch(self.daemon_pid,
                                         source if restarts == "source" else destination)
        before = inside(copies())
        self.clients.mark()
        self.gap = 0.0  # so far
        lateness = Lateness()
        row = {"case": name, "from": source, "outcome": "", "at": "", "gap_ms": "", "verdict": ""}
        try:
            row["outcome"] = act(source, destination)
            gap = self.answers_again()
            row["gap_ms"] = "%.0f" % (gap / 1000)
            owner = self.source()
            row["at"] = {source: "source", destination: "destination"}[owner]
            if expected not in ("one", row["at"]):
                raise Failure("it is at the %s, not at the %s" % (row["at"], expected))
            self.check_one_copy(owner)
            if row["at"] == "source":
                self.check_inside(before)
            absent = watch.seconds() if watch else 0.0
            late = lateness.seconds()
            if watch:
                row["gap_ms"] += " (%.0f without a daemon)" % (absent * 1000)
            if limit_us is not None and gap > limit_us + (absent + LATE_STEPS * late) * 1e6:
                raise Failure("no answer for %.0f ms; the machine was late by %.0f ms" % (
                    gap / 1000, late * 1000))
            self.faults.disarm()
            self.lab.move(SERVICE, other(owner))
            self.answers_again()
            row["verdict"] = "ok"
        except Failure as problem:
            row["verdict"] = "FAILED: %s" % problem
            self.problems.append("%s: %s" % (name, problem))
        self.faults.disarm()
        self.rows.append(row)
        print("%-46s %s %-12s at %-12s %6s ms  %s" % (
            row["case"], row["from"], row["outcome"][:60], row["at"], row["gap_ms"],
            row["verdict"]), flush=True)
        if row["verdict"] != "ok":
            self.lab.show_logs()
            raise Failure(self.problems[-1])

    # -- parts

    def fault_point(self, point, action, expected):
        def act(_, destination):
            self.faults.arm(point, action)
            options = ["--verify"] if point in VERIFYING else []
            outcome, _ = self.finish_migration(self.start_migration(destination, *options))
            if not self.faults.hit_by_now():
                raise Failure("%s was not reached: %s" % (point, outcome))
            return outcome
        daemon = {"node.marked": "source", "node.before_mover": "source"}.get(point, "destination") \
            if point.startswith("node.") and action == "kill" else None
        self.case("%s=%s" % (point, action), expected, act, SOON_US, daemon)

    def thaw(self, action):
        def act(source, destination):
            self.faults.arm(THAW_STEP, action)
            process = self.start_migration(destination, "--bandwidth", "2MiB")
            wait_for("its mover", lambda: movers(self.daemon_pid(source)), 20)
            time.sleep(1)  # it sends for eight seconds
            process.send_signal(signal.SIGINT)
            outcome, _ = self.finish_migration(process)
            if not self.faults.hit_by_now():
                raise Failure("%s was not reached: %s" % (THAW_STEP, outcome))
            return outcome
        self.case("cancel, %s=%s" % (THAW_STEP, action), "source", act, SOON_US)

    def undoing_interrupted(self, point, then):
        """The source's mover is killed at `point`, and whoever undoes it at `then`."""
        def act(source, destination):
            self.faults.arm(point, "wait")
            process = self.start_migration(destination)
            self.wait_hit(point)
            self.faults.arm(then, "kill")
            for pid in movers(self.daemon_pid(source)):
                os.kill(pid, signal.SIGKILL)
            outcome, _ = self.finish_migration(process)
            if not self.faults.hit_by_now():
                raise Failure("%s was not reached: %s" % (then, outcome))
            return outcome
        self.case("%s: mover killed, %s=kill" % (point, then), "source", act, SOON_US,
                  "source" if then.startswith("node.") else None)

    def daemon_killed(self, point, side, expected):
        def act(source, destination):
            self.faults.arm(point, "wait")
            process = self.start_migration(destination)
            self.wait_hit(point)
            self.kill_daemon(source if side == "source" else destination)
            self.faults.go_on()
            return self.finish_migration(process)[0]
        self.case("%s: daemon of %s killed" % (point, side), expected, act, SOON_US, side)

    def link_cut(self, point, expected):
        def act(source, destination):
            self.faults.arm(point, "wait")
            process = self.start_migration(destination)
            self.wait_hit(point)
            # Clients reach the source all the time, so that the gap is ours.
            self.uplink(destination, "down")
            try:
                self.faults.go_on()
                # After the end mark only the store can tell; n2 cannot ask it now.
                if source == "n1" or point.startswith("source."):
                    gap = self.answers_again()
                    if gap > SOON_US:
                        raise Failure("no answer for %.0f ms while the link is cut" % (gap / 1000))
                else:
                    time.sleep(3)
                if source == "n1":
                    return self.finish_migration(process)[0]
            finally:
                self.uplink(destination, "up")
            return self.finish_migration(process)[0]
        self.case("%s: uplink of destination cut" % point, expected, act)

    def source_cut_off(self, point, expected):
        """Clients cannot reach it either, so that nothing is said about their gap."""
        def act(source, destination):
            self.faults.arm(point, "wait")
            process = self.start_migration(destination)
            self.wait_hit(point)
            self.uplink(source, "down")
            try:
                self.faults.go_on()
                time.sleep(3)
            finally:
                self.uplink(source, "up")
            return self.finish_migration(process)[0]
        self.case("%s: uplink of source cut" % point, expected, act)

    def cancelled(self, point, expected):
        def act(_, destination):
            self.faults.arm(point, "wait")
            process = self.start_migration(destination)
            self.wait_hit(point)
            process.send_signal(signal.SIGINT)
            # Until the daemon has been asked and has told the mover: nothing shows that it has.
            time.sleep(1.5 if expected == "source" else 0.4)
            self.faults.go_on()
            outcome, code = self.finish_migration(process)
            wanted = {"source": ("rolled_back", 4), "destination": ("moved", 0)}
            if expected in wanted and (outcome, code) != wanted[expected]:
                raise Failure("migrate ended with %s, exit code %s" % (outcome, code))
            return outcome
        self.case("%s: Ctrl-C" % point, expected, act)

    def strangers(self):
        def act(source, destination):
            self.faults.arm("node.before_mover", "wait")
            process = self.start_migration(destination)
            self.wait_hit("node.before_mover")
            port = self.mover_port(destination)
            host = next(each["address"] for each in
                        json.loads(self.lab("lab", "status", "--json").stdout)
                        if each["host"] == destination)
            stranger = subprocess.Popen(
                self.lab.client_command("python3", os.path.join(os.path.dirname(
                    os.path.abspath(__file__)), "stranger.py"), host, port),
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            try:
                if stranger.stdout.readline().strip() != "connected":
                    raise Failure("the stranger could not connect to %s:%s" % (host, port))
                self.faults.go_on()
                outcome = self.finish_migration(process)[0]
            finally:
                said, _ = stranger.communicate("\n", timeout=30)
            if stranger.returncode != 0:
                raise Failure("stranger: %s" % said)
            return outcome
        self.case("strangers on the mover's port", "destination", act)

    def mover_port(self, node):
        """The one listening TCP socket of the node that is not its daemon's."""
        ports = set()
        daemon = set()
        inodes = set()
        for fd in glob.glob("/proc/%d/fd/*" % self.daemon_pid(node)):
            with contextlib.suppress(OSError):
                inodes.add(os.readlink(fd))
        for line in self.lab("lab", "exec", node, "--", "cat", "/proc/net/tcp",
                             "/proc/net/tcp6").stdout.splitlines():
            words = line.split()
            if len(words) < 10 or words[3] != "0A":
                continue
            number = int(words[1].rsplit(":", 1)[1], 16)
            (daemon if "socket:[%s]" % words[9] in inodes else ports).add(number)
        if len(ports) != 1:
            raise Failure("listening on %s: %s, its daemon %s" % (node, ports, daemon))
        return ports.pop()


def plan(part, everything):
    """Calls of the part, as (name, function of Transactions)."""
    def chosen(steps):
        return [each for each in steps if everything or each[2]]

    def point_cases(action):
        for point, expected, _ in chosen(SOURCE_STEPS) + chosen(DESTINATION_STEPS):
            yield point, lambda t, p=point, e=expected: t.fault_point(p, action, e)
        yield THAW_STEP, lambda t: t.thaw(action)

    if part in ("kill", "error"):
        yield from point_cases(part)
    if part == "daemons":
        before = ["source.prepared", "source.round_done", "source.frozen", "source.before_end_mark",
                  "replica.apply_pages", "replica.restore_tasks"]
        some = ["source.round_done", "source.frozen"]
        for point in before if everything else some:
            for side in ("source", "destination"):
                # By then the source has sent its end mark, or not.
                late = point == "replica.restore_tasks" and side == "source"
                yield point, lambda t, p=point, s=side, e="one" if late else "source": \
                    t.daemon_killed(p, s, e)
        for point in ["destination.received", "destination.ready"] if everything else \
                ["destination.ready"]:
            yield point, lambda t, p=point: t.daemon_killed(p, "source", "one")
            yield point, lambda t, p=point: t.daemon_killed(p, "destination", "source")
        for side in ("source", "destination"):
            yield "destination.committed", \
                lambda t, s=side: t.daemon_killed("destination.committed", s, "destination")
    if part == "undo":
        points = ["source.uffd_inside", "source.round_done", "source.frozen",
                  "source.before_end_mark"]
        for point in points if everything else ["source.frozen"]:
            for then in ["node.rolling_back", "node.rolled_back", "source.left_over"]:
                yield then, lambda t, p=point, w=then: t.undoing_interrupted(p, w)
    if part == "links":
        # Before the freeze a link that comes back soon enough breaks nothing.
        for point, expected in [("source.round_done", "one"), ("source.frozen", "source"),
                                ("destination.received", "one"), ("destination.ready", "one")]:
            for _ in range(2 if everything else 1):  # from n1, and from n2
                yield point, lambda t, p=point, e=expected: t.link_cut(p, e)
        for point, expected in [("source.frozen", "source"), ("destination.ready", "one")]:
            for _ in range(2 if everything else 0):
                yield point, lambda t, p=point, e=expected: t.source_cut_off(p, e)
    if part == "cancel":
        steps = ["source.connected", "source.prepared", "source.round", "pages.send",
                 "source.round_done", "source.freeze", "source.frozen", "source.final_state",
                 "source.final_pages", "destination.connected", "replica.map_memory",
                 "destination.round_done"]
        for point in steps if everything else ["source.prepared", "pages.send", "source.frozen"]:
            yield point, lambda t, p=point: t.cancelled(p, "source")
        for point in ["destination.received", "destination.ready", "destination.committed"]:
            yield point, lambda t, p=point: t.cancelled(p, "destination")
    if part == "strangers":
        yield "strangers", lambda t: t.strangers()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("godwit")
    parser.add_argument("--part", action="append", choices=PARTS)
    parser.add_argument("--only", help="cases whose step has this in its name")
    parser.add_argument("--list", action="store_true")
    options = parser.parse_args()
    everything = os.environ.get("GODWIT_FAULTS") == "all"
    cases = [case for part in options.part or PARTS for case in plan(part, everything)
             if not options.only or options.only in case[0]]
    if options.list:
        print("\n".join(name for name, _ in cases))
        return 0
    return run_all(options.godwit, cases)


def run_all(godwit, cases, kind=Transactions, nodes=2):
    """The exit code."""
    faults = Faults()
    try:
        # A lab is held for a short while only: others wait for the lock.
        while cases:
            batch, cases = cases[:12], cases[12:]
            with Lab(godwit, nodes) as lab:
                transactions = kind(lab, faults, os.path.join(lab.build, "memory_server"))
                for _, case in batch:
                    case(transactions)
                total = transactions.clients.finish()
                if total["total_wrong"] or total["total_lost"]:
                    raise Failure("clients: %s" % json.dumps(total))
                print("%d answers checked, 0 wrong, 0 lost" % total["total_checked"], flush=True)
    except Failure as problem:
        print("FAILED: %s" % problem)
        return 1
    finally:
        faults.remove()
    return 0


PARTS = ["kill", "error", "daemons", "undo", "links", "cancel", "strangers"]

if __name__ == "__main__":
    sys.exit(main())
