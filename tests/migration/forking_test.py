#!/usr/bin/env python3
"""A program whose threads fork all the time is moved. A child that is born while the mover has its
descriptor inside of the program inherits a copy: it is taken out again, whether the move goes through
or is called off, however long the child lives.

  forking_test.py build/godwit
"""
import contextlib
import os
import sys

TESTS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..")
sys.path.insert(0, TESTS)
sys.path.insert(0, os.path.join(TESTS, "faults"))
from breaking import Faults  # noqa: E402
from godwit_lab import Failure, Lab, wait_for  # noqa: E402
import process_view  # noqa: E402

MOVES = 6


def children(lab):
    return set(process_view.tree(lab.inspect("forker")["pid"]))


def forks_on(lab):
    before = children(lab)
    wait_for("new children", lambda: children(lab) - before, 10)


def with_tracker(lab):
    """Those of the service's processes that have a userfaultfd, by their pids here."""
    found = set()
    for pid in process_view.host_pids(lab.inspect("forker")["pid"]).values():
        with contextlib.suppress(OSError):
            for number in os.listdir("/proc/%d/fd" % pid):
                if os.readlink("/proc/%d/fd/%s" % (pid, number)) == "anon_inode:[userfaultfd]":
                    found.add(pid)
    return found


def held_with_the_descriptor_inside(lab, faults, cancel):
    """Until long-lived children have inherited it: then the move goes on, or is cancelled."""
    wanted = faults.held(
        lab, "source.uffd_inside", ["forker", "n2"],
        lambda: wait_for("a child that has inherited it", lambda: len(with_tracker(lab)) > 3, 10), cancel)
    left = with_tracker(lab)
    if left:
        raise Failure("%s, and processes %s have the mover's descriptor" % (wanted, left))
    print("%s, after children had inherited the descriptor" % wanted, flush=True)


def check_log(lab):
    log = lab("logs", "forker").stdout.split()
    if log != ["ready"]:
        raise Failure("the service's log:\n%s" % " ".join(log))


def main():
    faults = Faults()
    try:
        with Lab(sys.argv[1]) as lab:
            # On a mount of its own, where the kernel knows a mapping of the executable for what it is:
            # below a writable layer it sees the file behind it.
            lab.start("forker", os.path.join(lab.build, "forker"), "3",
                      options=["--bind", lab.build])
            wait_for("the service to be ready", lambda: "ready" in lab("logs", "forker").stdout)
            for cancel in (True, False):
                held_with_the_descriptor_inside(lab, faults, cancel)
                forks_on(lab)
                check_log(lab)
            for number in range(MOVES):
                node = "n2" if number % 2 else "n1"
                result = lab.move("forker", node, *(["--verify"] if number % 3 == 2 else []))
                forks_on(lab)
                check_log(lab)
                print("move to %s: freeze %.2f ms, first stop %.2f ms, %d processes" % (
                    node, result["freeze_ns"] / 1e6, result["first_stop_ns"] / 1e6,
                    result["processes"]), flush=True)
    finally:
        faults.remove()
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Failure as failure:
        print("forking_test: %s" % failure, file=sys.stderr)
        sys.exit(1)
