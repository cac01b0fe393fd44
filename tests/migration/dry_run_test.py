#!/usr/bin/env python3
"""What --dry-run says is what a move then finds, and saying it changes nothing.

  dry_run_test.py GODWIT
"""

import contextlib
import json
import os
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
from godwit_lab import Failure, Lab, lab_name, wait_for  # noqa: E402

PORT = 7000
MIB = 1 << 20


def services():
    """Of n2, in the lab that this test has taken."""
    return "/var/lib/godwit/%s/n2/services" % lab_name()


def expect(what, condition, seen):
    if not condition:
        raise Failure("%s: %s" % (what, json.dumps(seen)))


@contextlib.contextmanager
def small_disk(mib):
    os.makedirs(services(), exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=%dm" % mib, "godwit-test", services()],
                   check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", services()], check=True)


def codes(result, field="refusals"):
    return [each["code"] for each in result[field]]


def carries_what_is_there(lab, address):
    clients = lab.pulse("echo", address, PORT, connections=3, interval_us=2000)
    before = lab.inspect("svc")
    seen = lab.migrate("svc", "n2", "--dry-run")
    expect("it can move", seen["outcome"] == "movable" and seen["exit_code"] == 0, seen)
    expect("strategy", seen["strategy"] == "precopy" and seen["chosen_because"], seen)
    expect("by a probe", "probe" in seen["based_on"] and seen["bytes_per_s"] > 0, seen)
    expect("memory", 150 * MIB < seen["memory_bytes"] < 250 * MIB, seen)
    expect("tasks", seen["processes"] == 1 and seen["threads"] >= 2, seen)
    expect("connections", seen["connections"] >= 3 <= seen["descriptors"], seen)
    expect("layer", 3 * MIB <= seen["layer_bytes"] < 4 * MIB, seen)
    expect("predicted", 0 < seen["predicted_downtime_ns"] < seen["predicted_total_ns"], seen)
    by = {each["strategy"]: each for each in seen["forecasts"]}
    expect("forecasts", set(by) == {"precopy", "hybrid", "postcopy", "cold"}, seen)
    expect("cold stands still for longer",
           by["cold"]["downtime_ns"] > by["precopy"]["downtime_ns"], seen)
    expect("post-copy is possible", by["hybrid"]["feasible"] and by["postcopy"]["feasible"], seen)
    after = lab.inspect("svc")
    expect("nothing changed", before == after, [before, after])
    clients.finish()
    return seen


def moves_tell_the_next(lab, first):
    moved = lab.move("svc", "n2")
    expect("followed", moved["strategy"] == "precopy" and moved["chosen_because"], moved)
    expect("predicted", moved["predicted_downtime_ns"] > 0 and moved["predicted_total_ns"] > 0, moved)
    # Some 500 pages a second, and those that are written all the time, in short windows.
    expect("dirty rate", 50 < moved["dirty_pages_per_s"] < 100000, moved)
    classes = moved["pages_cold"] + moved["pages_warm"] + moved["pages_hot"]
    expect("classes", 150 < classes * 4096 / MIB < 250 and moved["pages_cold"] > classes / 2, moved)
    expect("the same memory", 0.8 < moved["memory_bytes"] / first["memory_bytes"] < 1.25, moved)
    again = lab.migrate("svc", "n1", "--dry-run")
    expect("by the move", "last move of svc" in again["based_on"], again)
    expect("its link", again["bytes_per_s"] == moved["bytes_per_s"], again)
    shown = lab.inspect("svc")["last_migration"]
    expect("recorded", shown["chosen_because"] == moved["chosen_because"] and
           shown["predicted_total_ns"] == moved["predicted_total_ns"], shown)
    lab.move("svc", "n1")


def without_room_it_is_refused(lab):
    wait_for("n2 to be empty", lambda: not os.listdir(services()), 20)
    with small_disk(8):
        for options in (["--dry-run"], []):
            seen = lab.migrate("svc", "n2", *options)
            expect("%s without room" % options, seen["outcome"] == "refused" and
                   codes(seen) == ["disk.room"] and seen["exit_code"] == 3, seen)
            expect("it runs on", lab.inspect("svc")["state"] == "running", seen)
        expect("nothing is left", not os.listdir(services()), os.listdir(services()))


def what_is_not_possible_is_said(lab):
    for strategy in ("hybrid", "postcopy"):
        done = lab("migrate", "svc", "n2", "--verify", "--strategy", strategy, check=False)
        expect(strategy, done.returncode == 1 and "--strategy %s" % strategy in done.stderr,
               [done.returncode, done.stdout, done.stderr])
    seen = lab.migrate("svc", "n2", "--strategy", "precopy", "--max-total", "1ms", "--max-downtime",
                       "1us")
    expect("limits that cannot be kept", seen["outcome"] == "rolled_back" and
           "--max-total" in seen["error"], seen)


def main():
    with Lab(sys.argv[1]) as lab:
        address = lab.start("svc", os.path.join(lab.build, "memory_server"), "--port", PORT,
                            "--mib", 160, "--dirty-pages-per-s", 500, "--threads", 2, port=PORT)
        lab("exec", "svc", "--", "dd", "if=/dev/urandom", "of=/var/tmp/file", "bs=1M", "count=3")
        first = carries_what_is_there(lab, address)
        moves_tell_the_next(lab, first)
        lab("exec", "svc", "--", "dd", "if=/dev/urandom", "of=/var/tmp/file", "bs=1M", "count=24")
        without_room_it_is_refused(lab)
        what_is_not_possible_is_said(lab)
        text = lab("migrate", "svc", "n2", "--dry-run", "-v").stdout
        print(text)
        expect("in words", "can move to n2" in text and "expected: freeze" in text and "carries 1 process," in text and
               "postcopy" in text, text)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Failure as problem:
        print("FAILED: %s" % problem)
        sys.exit(1)
