#!/usr/bin/env python3
"""--verify: pages that a replica has lost are found before it runs, and the move goes back; without
a fault the same move goes through, and so do checkpoint and restore.

  verify_test.py build/godwit
"""
import os
import re
import sys
import tempfile

TESTS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..")
sys.path.insert(0, TESTS)
sys.path.insert(0, os.path.join(TESTS, "faults"))
from breaking import Faults, inside  # noqa: E402
from godwit_lab import Failure, Lab  # noqa: E402

PORT = 7000
LOST = re.compile(r"verify: process \d+ \(memory_server\), mapping [0-9a-f]+-[0-9a-f]+.*: \d+ pages? "
                  r"(is|are) other than the source's, the first at [0-9a-f]+")


def answers(clients, what):
    checked = 0
    while checked < 20:
        seen = clients.mark()
        if seen["wrong"] or seen["lost"]:
            raise Failure("%s: %s" % (what, seen))
        checked += seen["checked"]


def lost_pages_are_found(lab, clients, faults, strategy):
    before = inside([lab.inspect("svc")["pid"]])
    faults.arm("replica.lose_pages", "error")
    result = lab.migrate("svc", "n2", "--verify", "--strategy", strategy)
    if not faults.was_hit():
        raise Failure("no page was lost")
    if result["outcome"] != "rolled_back" or not LOST.search(result["error"]):
        raise Failure("pages were lost, and: %s" % result)
    print("%s: %s" % (strategy, result["error"][:200]), flush=True)
    answers(clients, "after the rollback")
    after = inside([lab.inspect("svc")["pid"]])
    if after != before:
        raise Failure("left in the program:\n%s\n%s" % (before, after))


def a_file_with_hashes(lab, clients, faults):
    with tempfile.TemporaryDirectory(prefix="godwit-test-") as folder:
        path = os.path.join(folder, "svc.gw")
        clients.finish()
        lab("checkpoint", "svc", "-o", path, "--verify")
        faults.arm("replica.lose_pages", "error")
        done = lab("restore", path, "--node", "n2", check=False)
        said = done.stdout + done.stderr
        if done.returncode == 0 or not LOST.search(said):
            raise Failure("pages were lost, and restore said: %s" % said)
        faults.disarm()
        lab("restore", path, "--node", "n2")
        answers(lab.pulse("echo", lab.inspect("svc")["address"].split("/")[0], PORT), "restored")


def main():
    faults = Faults()
    try:
        with Lab(sys.argv[1]) as lab:
            address = lab.start("svc", os.path.join(lab.build, "memory_server"), "--port", PORT,
                                "--mib", 32, "--dirty-pages-per-s", 1000, "--threads", 2,
                                port=PORT)
            clients = lab.pulse("echo", address, PORT, connections=2)
            answers(clients, "unmoved")  # connected
            for strategy in ("precopy", "cold"):
                lost_pages_are_found(lab, clients, faults, strategy)
            for node, strategy in (("n2", "precopy"), ("n1", "cold")):
                result = lab.move("svc", node, "--verify", "--strategy", strategy)
                answers(clients, "moved to %s" % node)
                print("verified, %s: freeze %.1f ms" % (strategy, result["freeze_ns"] / 1e6),
                      flush=True)
            a_file_with_hashes(lab, clients, faults)
    finally:
        faults.remove()
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Failure as failure:
        print("verify_test: %s" % failure, file=sys.stderr)
        sys.exit(1)
