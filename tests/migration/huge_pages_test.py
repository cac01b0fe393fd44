#!/usr/bin/env python3
"""Memory of explicit huge pages (MAP_HUGETLB, MFD_HUGETLB, SHM_HUGETLB) moves in every way, keeps its
kind, its holes and what it reserved, and is refused where the other node's pool is too small.

  huge_pages_test.py build/godwit
"""
import contextlib
import fcntl
import os
import re
import sys
import tempfile

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
import godwit_lab  # noqa: E402
from godwit_lab import Failure  # noqa: E402
import state_test  # noqa: E402

POOLS = "/sys/kernel/mm/hugepages"
PORT = "7100"
# A huge page that is written in one place goes as a whole.
DOWNTIME = ["--max-downtime", "20s"]


def pool_file(kib, name):
    return os.path.join(POOLS, "hugepages-%dkB" % kib, name)


def number(kib, name):
    with open(pool_file(kib, name)) as file:
        return int(file.read())


@contextlib.contextmanager
def changing():
    """Tests change the machine's pools one after the other."""
    folder = os.open(POOLS, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def resize(kib, by):
    """By how much the pool is larger now."""
    with changing():
        before = number(kib, "nr_hugepages")
        with open(pool_file(kib, "nr_hugepages"), "w") as file:
            file.write(str(max(0, before + by)))
        return number(kib, "nr_hugepages") - before


@contextlib.contextmanager
def pool(kib, pages):
    got = resize(kib, pages) if os.path.isdir(os.path.dirname(pool_file(kib, ""))) else 0
    try:
        yield got == pages
    finally:
        resize(kib, -got)


def taken(kib):
    return number(kib, "nr_hugepages") - number(kib, "free_hugepages"), number(kib, "resv_hugepages")


def spare():
    return number(2048, "free_hugepages") - number(2048, "resv_hugepages")


def expect(what, is_so):
    if not is_so:
        raise Failure(what)


def check(lab, address, when):
    wrong = state_test.ask(lab, address, when)
    expect("\n".join(wrong), not wrong)


def moves(lab, address):
    """Both nodes have the pool of this machine: it holds the service twice in a move, once after."""
    before = taken(2048)
    for node, strategy, options in (("n2", "precopy", ["--verify"]), ("n1", "cold", ["--verify"]),
                                    ("n2", "postcopy", []), ("n1", "hybrid", []),
                                    ("n2", "precopy", []), ("n1", "precopy", ["--verify"])):
        lab.move("huge", node, "--strategy", strategy, *DOWNTIME, *options)
        check(lab, address, "moved to %s, %s" % (node, strategy))
        godwit_lab.wait_for("pages that are given back: %s, before %s" % (taken(2048), before),
                            lambda: sum(taken(2048)) <= sum(before) + 8)
    lab("rejuvenate", "huge")
    check(lab, address, "rejuvenated")


def checkpoints(lab, address, folder):
    path = os.path.join(folder, "huge.gw")
    lab("checkpoint", "huge", "-o", path)
    lab("restore", path, "--node", "n2")
    check(lab, address, "restored")
    lab("checkpoint", "huge", "-o", path)
    lab("restore", path, "--node", "n1", "--lazy")
    check(lab, address, "restored lazily")


def clones(lab, address):
    lab("clone", "huge", "--name", "second", "--node", "n2")
    check(lab, lab.inspect("second")["address"].split("/")[0], "clone")
    check(lab, address, "cloned")
    lab("rm", "-f", "second")


def too_few(lab, address):
    """Refused by name; and where that shows only when they are taken, rolled back."""
    smaller = resize(2048, 3 - spare())
    try:
        before = taken(2048)
        for options in (["--dry-run"], []):
            seen = lab.migrate("huge", "n2", *options)
            codes = [each["code"] for each in seen["refusals"]]
            expect("too few pages: %s" % seen,
                   seen["outcome"] == "refused" and codes == ["memory.huge_pages"])
        check(lab, address, "refused")
        # What no process has attached is not counted: the last page is missing.
        needed = int(re.search(r"needs (\d+)", seen["refusals"][0]["reason"]).group(1))
        smaller += resize(2048, needed - spare())
        seen = lab.migrate("huge", "n2", *DOWNTIME)
        expect("too few pages to take: %s" % seen,
               seen["outcome"] == "rolled_back" and "huge pages" in seen["error"])
        print("rolled back: %s" % seen["error"], flush=True)
        check(lab, address, "rolled back")
        godwit_lab.wait_for("what the replica had taken to come back", lambda: spare() >= needed)
        expect("taken %s, before %s" % (taken(2048), before),
               abs(sum(taken(2048)) - sum(before)) <= 8)
    finally:
        resize(2048, -smaller)


def large(lab):
    """Pages of 1 GiB."""
    with pool(1048576, 2) as there:
        if not there:
            print("skipped: the kernel has no two pages of 1 GiB to give", flush=True)
            return
        address = lab.start("large", os.path.join(lab.build, "huge_pages"), PORT, "1048576",
                            port=PORT)
        for node, strategy, options in (("n2", "precopy", ["--verify"]), ("n1", "postcopy", []),
                                        ("n2", "cold", [])):
            lab.move("large", node, "--strategy", strategy, *DOWNTIME, *options)
            check(lab, address, "large, moved to %s, %s" % (node, strategy))
        lab("rm", "-f", "large")
        godwit_lab.wait_for("pages of 1 GiB to come back: %s" % (taken(1048576),),
                            lambda: taken(1048576) == (0, 0))


def main():
    with contextlib.ExitStack() as stack:
        if not stack.enter_context(pool(2048, 128)):
            print("skipped: the kernel has no 128 huge pages to give", flush=True)
            return 0
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="godwit-test-"))
        lab = stack.enter_context(godwit_lab.Lab(sys.argv[1]))
        address = lab.start("huge", os.path.join(lab.build, "huge_pages"), PORT, port=PORT)
        check(lab, address, "unmoved")
        too_few(lab, address)
        moves(lab, address)
        checkpoints(lab, address, folder)
        clones(lab, address)
        lab("rm", "-f", "huge")
        large(lab)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Failure as failure:
        print("huge_pages_test: %s" % failure, file=sys.stderr)
        sys.exit(1)
