#!/usr/bin/env python3
"""A command right after another: what the first one still does behind its answer is waited for, and
nobody is told that a service is busy, or there already, with something that has ended for them.

  sequence_test.py build/godwit [--only TEXT] [--times N]
"""
import argparse
import json
import os
import sys
import tempfile
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
import godwit_lab  # noqa: E402
from godwit_lab import Failure  # noqa: E402

PORT = 7000


class Sequence:
    def __init__(self, lab, folder):
        self.lab = lab
        self.file = os.path.join(folder, "svc.gw")

    def __call__(self, *command):
        done = self.lab(*command, check=False)
        if done.returncode != 0:
            raise Failure("%s: exit code %d, %s%s" % (" ".join(command), done.returncode, done.stdout,
                                                      done.stderr))
        return done.stdout

    def run(self, name, node="n1", *options):
        self("run", "--name", name, "--node", node, "-d", *options, "--",
             os.path.join(self.lab.build, "memory_server"), "--port", str(PORT), "--mib", "8",
             "--dirty-pages-per-s", "1000", "--threads", "2")

    def answers(self, name):
        shown = self.lab.inspect(name)
        if shown["state"] != "running":
            raise Failure("%s is %s" % (name, shown["state"]))
        self.lab.wait_until_it_listens(name, shown["address"].split("/")[0], PORT)

    # -- cases

    def moves(self, *strategies):
        self.run("svc")
        for strategy in strategies * 2:
            self("migrate", "svc", "n2", "--strategy", strategy)
            self("migrate", "svc", "n1", "--strategy", strategy)
        self.answers("svc")
        self("rm", "-f", "svc")

    def rounds(self):
        self.moves("precopy", "cold")

    def memory_follows(self):
        self.moves("postcopy", "hybrid")

    def in_place(self):
        self.run("svc")
        self("rejuvenate", "svc")
        self("rejuvenate", "svc")
        self("migrate", "svc", "n2")
        self("rejuvenate", "svc")
        self("migrate", "svc", "n1")
        self("rejuvenate", "svc")
        self.answers("svc")
        self("rm", "-f", "svc")

    def name_again(self):
        """The name and the address of one that has just gone, on both nodes."""
        for where, strategy in (("n1", "precopy"), ("n2", "precopy"), ("n1", "postcopy")):
            self.run("svc", "n1", "--ip", "10.77.0.200")
            self("migrate", "svc", "n2", "--strategy", strategy)
            self("rm", "-f", "svc")
            self.run("svc", where, "--ip", "10.77.0.200")
            self.answers("svc")
            self("stop", "svc")
            self("rm", "svc")

    def its_own_end(self):
        """--rm removes it when it ends."""
        for _ in range(3):
            self("run", "--name", "svc", "--node", "n2", "--rm", "--", "/bin/true")
        if self.lab("wait", "svc", check=False).returncode == 0:
            raise Failure("svc is still there")

    def files(self):
        for save, there in (((), "n1"), ((), "n2"), (("--leave-running",), "n2")):
            self.run("svc")
            self("migrate", "svc", "n2")
            self("checkpoint", "svc", "-o", self.file, *save)
            if save:
                self("rm", "-f", "svc")
            self("restore", self.file, "--node", there)
            self.answers("svc")
            self("migrate", "svc", "n1" if there == "n2" else "n2")
            self("checkpoint", "svc", "-o", self.file, "--leave-running")
            self("checkpoint", "svc", "-o", self.file)
            self("restore", self.file, "--node", "n1", "--lazy")
            self("migrate", "svc", "n2")
            self.answers("svc")
            self("rm", "-f", "svc")

    def clones(self):
        self.run("svc")
        for node in ("n1", "n2", "n2", "n1"):
            self("clone", "svc", "--name", "copy", "--node", node)
            self("migrate", "copy", "n2" if node == "n1" else "n1")
            self("rm", "-f", "copy")
            self("clone", "svc", "--name", "copy", "--node", node)
            self("clone", "copy", "--name", "again", "--node", "n2")
            self("rm", "-f", "copy", "again")
        self("migrate", "svc", "n2")
        self("clone", "svc", "--name", "copy", "--node", "n1")
        self.answers("copy")
        self("rm", "-f", "copy", "svc")

    def asked_meanwhile(self):
        """Of what reads or works inside, right behind a move."""
        self.run("svc")
        for node in ("n2", "n1"):
            self("migrate", "svc", node)
            if self("exec", "svc", "--", "hostname").strip() != "svc":
                raise Failure("exec")
            self("migrate", "svc", "n2" if node == "n1" else "n1")
            self("signal", "svc", "WINCH")
            self("migrate", "svc", node)
            if "ready" not in self("logs", "svc"):
                raise Failure("its log: %s" % self("logs", "svc"))
            self("migrate", "svc", node if node == "n1" else "n2", "--dry-run") if node != \
                self.lab.inspect("svc")["node"] else None
        self("stop", "svc")
        self("rm", "svc")


CASES = [("moves", Sequence.rounds), ("memory that follows", Sequence.memory_follows),
         ("in place", Sequence.in_place), ("a name again", Sequence.name_again),
         ("its own end", Sequence.its_own_end), ("files", Sequence.files),
         ("clones", Sequence.clones), ("asked meanwhile", Sequence.asked_meanwhile)]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("godwit")
    parser.add_argument("--only", default="")
    parser.add_argument("--times", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="godwit-test-") as folder, \
            godwit_lab.Lab(options.godwit) as lab:
        for name, case in CASES:
            if options.only not in name:
                continue
            begin = time.monotonic()
            for number in range(options.times):
                try:
                    case(Sequence(lab, folder))
                    left = json.loads(lab("ps", "-a", "--json").stdout)
                    if left:
                        raise Failure("left: %s" % left)
                except Failure as failure:
                    raise Failure("%s, time %d: %s" % (name, number + 1, failure))
            print("%-24s %d times  ok  %.1f s" % (name, options.times, time.monotonic() - begin),
                  flush=True)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Failure as failure:
        print("sequence_test: %s" % failure, file=sys.stderr)
        sys.exit(1)
