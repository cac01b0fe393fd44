#!/usr/bin/env python3
"""Post-copy that is disturbed: the service runs at the destination while its memory is at the source.

  post_copy_test.py build/godwit [--only TEXT]

In each case a service moves with most of its memory to follow slowly; meanwhile a mover or a daemon
is killed, the link is cut, or the service is ended. Its clients check every answer and it checks its
own memory. Afterwards nothing is missing, nothing is left at the source, and there is one copy.
"""
import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import godwit_lab  # noqa: E402
from breaking import Faults, copies, movers, traces  # noqa: E402
from godwit_lab import Failure, lab_name, wait_for  # noqa: E402

SERVICE, PORT = "svc", 7000
MIB = 64
# What is pushed; what the service waits for comes at once. 64 MiB take some ten seconds.
SLOW = ("--bandwidth", "9MiB")


def other(node):
    return "n2" if node == "n1" else "n1"


class PostCopy:
    def __init__(self, lab, faults):
        self.lab, self.faults = lab, faults
        self.start()

    def start(self):
        address = self.lab.start(SERVICE, os.path.join(self.lab.build, "memory_server"), "--port",
                                 PORT, "--mib", MIB, "--dirty-pages-per-s", 300, "--threads", 2,
                                 port=PORT)
        self.clients = self.lab.pulse("echo", address, PORT, connections=3, interval_us=1000)

    def daemon_pid(self, node):
        with open("/run/godwit/%s/%s/pid" % (lab_name(), node)) as text:
            keeper = int(text.read().split()[0])

        def child():
            with open("/proc/%d/task/%d/children" % (keeper, keeper)) as text:
                return [int(each) for each in text.read().split()]
        return wait_for("the daemon of %s" % node, child, 10)[0]

    @staticmethod
    def kill(pids):
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):  # the destination's is about to end
                os.kill(pid, signal.SIGKILL)

    def kill_daemon(self, node):
        before = self.daemon_pid(node)
        os.kill(before, signal.SIGKILL)
        wait_for("another daemon", lambda: self.daemon_pid(node) != before, 10)

    def uplink(self, node, state):
        self.lab("lab", "exec", node, "--", "ip", "link", "set", "up0", state)

    def missing(self):
        def reached():
            shown = self.lab.inspect(SERVICE)
            return shown if shown["state"] == "running" else None
        shown = wait_for("its node's daemon", reached, 20)
        return shown["pages_missing"] if shown["pages_at"] else 0

    def begin(self):
        """Moves it; back when it runs there and most of its pages are still to come."""
        self.source = self.lab.inspect(SERVICE)["node"]
        self.destination = other(self.source)
        self.process = subprocess.Popen(
            [self.lab.godwit, "migrate", SERVICE, self.destination, "--json", "--strategy",
             "postcopy", *SLOW], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        wait_for("the service to run there", lambda: self.lab.inspect(SERVICE)["pages_at"], 20)
        self.answers()

    def answers(self, enough=50):
        seen = self.clients.mark()
        checked, end = seen["checked"], time.monotonic() + 20
        while checked < enough:
            if time.monotonic() > end:
                raise Failure("clients get no answers: %s" % json.dumps(seen))
            time.sleep(0.02)
            seen = self.clients.mark()
            checked += seen["checked"]
            if seen["wrong"] or seen["lost"] or seen["alive"] != 3:
                raise Failure("clients: %s" % json.dumps(seen))

    def result(self):
        out, err = self.process.communicate(timeout=60)
        try:
            return json.loads(out)
        except ValueError:
            return {"outcome": "error", "error": err.strip()}

    def settled(self):
        wait_for("the last page", lambda: not self.lab.inspect(SERVICE)["pages_at"], 60)
        shown = self.lab.inspect(SERVICE)
        if shown["node"] != self.destination or shown["state"] != "running":
            log = self.lab("logs", "-n", "20", SERVICE, check=False).stdout
            raise Failure("it is %s (%s) on %s: %s" % (shown["state"], shown["exit_code"],
                                                      shown["node"], log))
        self.answers()
        self.clean(self.source, 1)

    def clean(self, node, running):
        def gone():
            return not traces(self.lab, node) and not movers() and len(copies()) == running
        try:
            wait_for("clean", gone, 25)
        except Failure:
            raise Failure("left on %s: %s; movers %s; copies %s" %
                          (node, sorted(traces(self.lab, node)), movers(), copies()))

    # -- cases

    def undisturbed(self):
        self.begin()
        result = self.result()
        if result["outcome"] != "moved" or result["error"] or result["strategy"] != "postcopy" or \
                result["pages_left_behind"] < MIB * 128:
            raise Failure(json.dumps(result))
        self.settled()

    def hybrid(self):
        self.source = self.lab.inspect(SERVICE)["node"]
        self.destination = other(self.source)
        result = self.lab.move(SERVICE, self.destination, "--strategy", "hybrid")
        # Rounds have carried most of it.
        if result["strategy"] != "hybrid" or result["rounds"] < 2 or \
                result["pages_left_behind"] > MIB * 128:
            raise Failure(json.dumps(result))
        self.settled()

    def mover_killed(self):
        self.begin()
        pids = wait_for("a mover", movers, 5)
        self.kill(pids)
        if self.missing() == 0:
            raise Failure("nothing is missing any more")
        self.result()
        self.settled()

    def daemon_killed(self, side):
        self.begin()
        self.kill_daemon(getattr(self, side))
        if self.missing() == 0:
            raise Failure("nothing is missing any more")
        self.settled()
        self.result()

    def both_daemons_killed(self):
        self.begin()
        self.kill_daemon(self.source)
        self.kill_daemon(self.destination)
        self.settled()
        self.result()

    def link_cut(self):
        self.begin()
        self.uplink(self.source, "down")
        try:
            # n2 asks its own shim; the store may be out of reach.
            time.sleep(4)
        finally:
            self.uplink(self.source, "up")
        if self.missing() == 0:
            raise Failure("nothing is missing any more")
        self.answers(1)
        self.settled()
        self.result()

    def followed_by_hand(self):
        self.begin()
        self.kill(wait_for("a mover", movers, 5))
        self.result()
        refused = self.lab("migrate", SERVICE, self.source, check=False)
        if refused.returncode == 0 or "--resume" not in refused.stderr:
            raise Failure("moved on without its pages: %s" % (refused.stdout + refused.stderr))
        done = self.lab("migrate", "--resume", SERVICE, "--json", timeout=60)
        if json.loads(done.stdout)["outcome"] != "moved" or self.missing():
            raise Failure(done.stdout)
        self.settled()

    def ended_meanwhile(self):
        self.begin()
        self.lab("rm", "--force", SERVICE)
        self.result()
        for node in (self.source, self.destination):
            self.clean(node, 0)
        self.clients.kill()
        self.start()

    def source_lost(self):
        self.begin()
        self.kill(wait_for("a mover", movers, 5))
        done = self.lab("migrate", "--source-lost", SERVICE, "--json", check=False, timeout=60)
        self.result()
        # It reads all of its memory, and so what is lost.
        wait_for("the end of the service", lambda: self.lab.inspect(SERVICE)["state"] == "exited", 20)
        if self.lab.inspect(SERVICE)["exit_code"] != 128 + signal.SIGBUS:
            raise Failure("exit code %s, %s" % (self.lab.inspect(SERVICE)["exit_code"], done.stdout))
        self.clean(self.source, 0)
        self.lab("rm", SERVICE)
        self.clients.kill()
        self.start()


CASES = [
    ("post-copy", PostCopy.undisturbed),
    ("hybrid", PostCopy.hybrid),
    ("mover killed", PostCopy.mover_killed),
    ("daemon of the source killed", lambda t: t.daemon_killed("source")),
    ("daemon of the destination killed", lambda t: t.daemon_killed("destination")),
    ("both daemons killed", PostCopy.both_daemons_killed),
    ("link cut", PostCopy.link_cut),
    ("followed by hand", PostCopy.followed_by_hand),
    ("ended meanwhile", PostCopy.ended_meanwhile),
    ("source lost", PostCopy.source_lost),
]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("godwit")
    parser.add_argument("--only", default="")
    options = parser.parse_args()
    faults = Faults()
    try:
        with godwit_lab.Lab(options.godwit) as lab:
            test = PostCopy(lab, faults)
            for name, case in CASES:
                if options.only not in name:
                    continue
                begin = time.monotonic()
                try:
                    case(test)
                except Failure as failure:
                    raise Failure("%s: %s" % (name, failure))
                print("%-36s ok  %.1f s" % (name, time.monotonic() - begin), flush=True)
            total = test.clients.finish()
            if total["total_wrong"] or total["total_lost"] or total["reopened"]:
                raise Failure("clients: %s" % total)
            print("%d answers checked, 0 wrong, 0 lost" % total["total_checked"])
    finally:
        faults.remove()
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Failure as failure:
        print("post_copy_test: %s" % failure, file=sys.stderr)
        sys.exit(1)
