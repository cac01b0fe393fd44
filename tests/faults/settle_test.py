#!/usr/bin/env python3
"""What follows a commit, or a daemon's start, goes wrong in ways of its own: the store's answer is
lost or its change late, an activation fails, a process of the replica dies, a move comes to a node
that recovers. As in transaction_test.py the service answers at exactly one node afterwards.

  settle_test.py GODWIT
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
from breaking import copies, inside, movers, traces  # noqa: E402
from godwit_lab import Failure, wait_for  # noqa: E402
from transaction_test import SERVICE, SOON_US, Transactions, run_all  # noqa: E402


class Settling(Transactions):
    def from_keeper(self):
        """Only a swap of the other node goes over the wire; and n1's daemon serves the commands."""
        if self.source() != "n1":
            self.lab.move(SERVICE, "n1")
            wait_for("n2 to be empty", lambda: not traces(self.lab, "n2"), 20)

    def commit_cut_off(self, point):
        """The keeper ends the connection before the change, or after it: without an answer."""
        self.from_keeper()
        self.fault_point(point, "error", "destination")

    def activation_fails(self):
        def act(_, destination):
            self.faults.arm("destination.committed", "wait")
            process = self.start_migration(destination)
            self.wait_hit("destination.committed")
            self.faults.arm("node.activate", "error")
            for pid in movers(self.daemon_pid(destination)):
                os.kill(pid, signal.SIGKILL)
            self.wait_hit("node.activate")
            return self.finish_migration(process)[0]
        self.case("destination.committed: mover killed, node.activate=error", "destination", act,
                  SOON_US)

    def replica_killed(self):
        """As for want of memory: it is complete, and the commit is about to be asked for."""
        def act(_, destination):
            before = copies()
            self.faults.arm("destination.ready", "wait")
            process = self.start_migration(destination)
            self.wait_hit("destination.ready")
            for pid in set(copies()) - set(before):
                os.kill(pid, signal.SIGKILL)
            self.faults.go_on()
            return self.finish_migration(process)[0]
        self.case("destination.ready: replica killed", "source", act)

    def moved_to_a_recovering_node(self):
        """A replica that came to be meanwhile would be taken for a stray."""
        self.from_keeper()
        def act(_, destination):
            self.faults.arm("node.recover", "wait")
            self.kill_daemon(destination)
            self.wait_hit("node.recover")
            wait_for("%s to be served" % destination, lambda: "ready" in [
                each["state"] for each in json.loads(self.lab("nodes", "--json").stdout)
                if each["name"] == destination], 10)
            process = self.start_migration(destination)
            try:
                end = time.monotonic() + 1.5
                while time.monotonic() < end:
                    if traces(self.lab, destination):
                        raise Failure("there by then: %s" % sorted(traces(self.lab, destination)))
                    time.sleep(0.05)
            finally:
                self.faults.go_on()
                outcome = self.finish_migration(process)[0]
            if outcome != "moved":
                raise Failure("migrate ended with %s" % outcome)
            return outcome
        self.case("moved to a node that recovers", "destination", act, SOON_US, "destination")

    def started_again_where_it_was(self):
        """It has moved and was removed there; the source still takes down what is left here."""
        self.from_keeper()
        self.lab.start("leaves", "sleep", "1000")
        self.faults.arm("node.taking_down", "wait")
        moved = self.lab.migrate("leaves", "n2")
        if moved["outcome"] != "moved":
            raise Failure("leaves: %s" % moved)
        self.wait_hit("node.taking_down")
        self.lab("rm", "-f", "leaves")
        again = subprocess.Popen([self.lab.godwit, "run", "--name", "leaves", "--node", "n1", "-d",
                                  "--", "sleep", "1000"], stderr=subprocess.PIPE, text=True)
        with contextlib.suppress(subprocess.TimeoutExpired):
            again.wait(0.5)
        self.faults.go_on()
        err = again.communicate(timeout=30)[1]
        if again.returncode != 0 or self.lab.inspect("leaves")["node"] != "n1":
            raise Failure("started again: exit code %d: %s" % (again.returncode, err))
        self.lab("rm", "-f", "leaves")
        self.faults.disarm()
        print("started again where it was: ok", flush=True)

    def late_commit(self):
        """n3's daemon dies while its commit is on its way to the keeper, n1. Its successor removes
        the replica before the keeper looks at the commit; n2's daemon, which would fence it, comes
        last."""
        self.lab.move(SERVICE, "n2")
        before = inside(copies())
        self.clients.mark()
        self.faults.arm("store.swap", "wait")
        process = self.start_migration("n3")
        self.wait_hit("store.swap")
        source = self.daemon_pid("n2")
        os.kill(source, signal.SIGSTOP)
        try:
            self.kill_daemon("n3")
            wait_for("n3 to be empty", lambda: not traces(self.lab, "n3"), 20)
            self.faults.go_on()
            time.sleep(0.5)  # until the keeper has looked; nothing shows that it has
        finally:
            os.kill(source, signal.SIGCONT)
        outcome = self.finish_migration(process)[0]
        self.answers_again()
        self.check_one_copy("n2")
        self.check_inside(before)
        self.faults.disarm()
        self.lab.move(SERVICE, "n3")
        self.answers_again()
        print("a commit that comes late: %s, at the source, ok" % outcome, flush=True)


def main():
    two_nodes = [
        ("store.swap", lambda t: t.commit_cut_off("store.swap")),
        ("store.swapped", lambda t: t.commit_cut_off("store.swapped")),
        ("node.activate", Settling.activation_fails),
        ("destination.ready", Settling.replica_killed),
        ("node.recover", Settling.moved_to_a_recovering_node),
        ("node.taking_down", Settling.started_again_where_it_was),
    ]
    failed = run_all(sys.argv[1], two_nodes, Settling)
    return failed or run_all(sys.argv[1], [("late", Settling.late_commit)], Settling, 3)


if __name__ == "__main__":
    sys.exit(main())
