#!/usr/bin/env python3
"""Programs that change under the mover's hands: that start other programs (execve(2)) in their own
process, with the same addresses or others; that put other memory in place of what was mapped, after
maps have been read; and shells, whose children do both at any time.

  changing_test.py build/godwit
"""
import itertools
import os
import re
import signal
import sys

TESTS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..")
sys.path.insert(0, TESTS)
sys.path.insert(0, os.path.join(TESTS, "faults"))
from breaking import Faults  # noqa: E402
from godwit_lab import Failure, Lab, wait_for  # noqa: E402

# `still`: the kernel puts everything at the same addresses each time (setarch(8), -R).
SUBJECTS = ["moving", "still"]
STRATEGIES = ["precopy", "postcopy", "hybrid", "cold"]
SHELLS = 2
SHELL_MOVES = 12


def generation(lab, name):
    """Of the program that runs now; a shell between two of them has that in its last word."""
    with open("/proc/%d/cmdline" % lab.inspect(name)["pid"], "rb") as file:
        words = file.read().rstrip(b"\0").replace(b"\0", b" ").split()
    try:
        return int(words[-1])
    except (IndexError, ValueError):
        return -1  # in the middle of execve(2)


def goes_on(lab, name, by=2):
    before = generation(lab, name)
    wait_for("%s to start another program" % name, lambda: generation(lab, name) >= before + by, 20)
    log = lab("logs", name).stdout.split()
    if log != ["ready"]:
        raise Failure("the log of %s:\n%s" % (name, " ".join(log)))


def replaces(lab, name):
    """Asks it to, and waits until it has."""
    before = lab("logs", name).stdout.count("replaced")
    os.kill(lab.inspect(name)["pid"], signal.SIGUSR1)
    wait_for("%s to replace its memory" % name,
             lambda: lab("logs", name).stdout.count("replaced") == before + 1, 10)


def is_right(lab, name):
    """It checks every 2 ms."""
    def naps():
        with open("/proc/%d/status" % lab.inspect(name)["pid"]) as file:
            return int(re.search(r"^voluntary_ctxt_switches:\t(\d+)", file.read(), re.M).group(1))

    before = naps()
    wait_for("%s to go on" % name, lambda: naps() > before + 20, 10)
    log = lab("logs", name).stdout
    if "map_replacer:" in log:
        raise Failure("the log of %s:\n%s" % (name, log))


def changes_at(lab, faults, name, node, point, strategy, change, cancel=False):
    """The mover waits at `point` of the engine while the service changes."""
    options = ["--verify"] if strategy == "precopy" else []
    if cancel:
        options = ["--bandwidth", "1MiB"]  # seconds, in which it is heard of
    wanted = faults.held(lab, point, [name, node, "--strategy", strategy, *options],
                         lambda: change(lab, name), cancel)
    print("%s %s (%s), held at %s" % (name, wanted, strategy, point), flush=True)


def starts_other_programs(lab, faults, name):
    nodes = itertools.cycle(["n2", "n1"])
    changes_at(lab, faults, name, "n2", "source.send_pages", "precopy", goes_on, cancel=True)
    goes_on(lab, name)
    # The first round; between rounds and freeze.
    for point, strategy in (("source.send_pages", "precopy"), ("source.freeze", "precopy"),
                            ("source.freeze", "hybrid"), ("source.freeze", "postcopy")):
        changes_at(lab, faults, name, next(nodes), point, strategy, goes_on)
        goes_on(lab, name)
    for strategy in STRATEGIES:
        lab.move(name, next(nodes), "--strategy", strategy)
        goes_on(lab, name)


def main():
    faults = Faults()
    try:
        with Lab(sys.argv[1]) as lab:
            execer = os.path.join(lab.build, "execer")
            lab.start("moving", execer, "0", "0", options=["--bind", lab.build])
            lab.start("still", "setarch", "-R", execer, "0", "0", options=["--bind", lab.build])
            lab.start("replacer", os.path.join(lab.build, "map_replacer"), options=["--bind", lab.build])
            for number in range(SHELLS):
                lab.start("shell%d" % number, "sh", "-c", "while :; do sleep 0.01; done")
            for name in SUBJECTS + ["replacer"]:
                wait_for("%s to be ready" % name, lambda: "ready" in lab("logs", name).stdout)
            # After maps were read, before pages are looked at.
            nodes = itertools.cycle(["n2", "n1"])
            for strategy in ("precopy", "hybrid", "precopy", "postcopy"):
                changes_at(lab, faults, "replacer", next(nodes), "source.send_pages", strategy, replaces)
                is_right(lab, "replacer")
            for name in SUBJECTS:
                starts_other_programs(lab, faults, name)
            for turn in range(SHELL_MOVES):
                for number in range(SHELLS):
                    lab.move("shell%d" % number, "n1" if turn % 2 else "n2")
            print("%d moves of shells" % (SHELLS * SHELL_MOVES), flush=True)
    finally:
        faults.remove()
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Failure as failure:
        print("changing_test: %s" % failure, file=sys.stderr)
        sys.exit(1)
