#!/usr/bin/env python3
"""Services move in place: to a new capsule on their node, under load, and with everything killed.

  rejuvenate_test.py build/godwit [--only TEXT] [--times N]
"""
import argparse
import json
import os
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, ".."))
sys.path.insert(0, os.path.join(HERE, "..", "faults"))
import godwit_lab  # noqa: E402
from breaking import Faults, copies, movers, traces  # noqa: E402
from godwit_lab import Failure, lab_name, wait_for  # noqa: E402

PORT = 7000
REDIS = 6379


def expect(what, is_so):
    if not is_so:
        raise Failure(what)


def steady(clients, connections, what):
    seen = clients.mark()
    checked, end = seen["checked"], time.monotonic() + 20
    while checked < 50:
        expect("%s: no answers" % what, time.monotonic() < end)
        time.sleep(0.02)
        seen = clients.mark()
        checked += seen["checked"]
        expect("%s: %s" % (what, json.dumps(seen)), not seen["wrong"] and not seen["lost"])
    expect("%s: %s" % (what, json.dumps(seen)), seen["alive"] == connections)


def rejuvenate(lab, name, *options):
    done = lab("rejuvenate", name, "--json", *options, check=False, timeout=90)
    try:
        return json.loads(done.stdout)
    except ValueError:
        return {"outcome": "error", "error": done.stdout + done.stderr}


def capsules(lab, node):
    return sorted(each.split("/")[-1] for each in traces(lab, node) if each.startswith("folder"))


def one_capsule(lab, node, what):
    def one():
        return len(capsules(lab, node)) == 1 and not movers() and \
            not any(each.startswith("journal") for each in traces(lab, node))
    try:
        wait_for("one capsule", one, 20)
    except Failure:
        raise Failure("%s: %s, movers %s" % (what, sorted(traces(lab, node)), movers()))
    links = [each for each in traces(lab, node) if each.startswith("link")]
    expect("%s: %s" % (what, links), len(links) == 1)


def redis_under_load(lab, faults, times):
    del faults
    address = lab.start("store", "/usr/bin/redis-server", "--port", REDIS, "--bind", "0.0.0.0",
                        "--save", "", "--protected-mode", "no", port=REDIS)
    clients = lab.pulse("redis", address, REDIS, connections=4, interval_us=500)
    steady(clients, 4, "before")
    before = lab.inspect("store")
    for i in range(times):
        result = rejuvenate(lab, "store")
        expect(json.dumps(result), result["outcome"] == "moved" and result["node"] == "n1")
        steady(clients, 4, "move %d" % i)
        one_capsule(lab, "n1", "move %d" % i)
        shown = lab.inspect("store")
        expect("%s, before %s" % (shown, before), shown["pid"] != before["pid"] and
               shown["address"] == before["address"] and shown["state"] == "running")
        before = shown
    log = lab("logs", "store").stdout
    expect("its log: %s" % log, "Ready to accept connections" in log)
    expect("exec", "store" in lab("exec", "store", "--", "hostname").stdout)
    # It goes elsewhere, and comes back, as any.
    lab.move("store", "n2")
    wait_for("n1 to be clean", lambda: not traces(lab, "n1"), 10)
    lab.move("store", "n1")
    expect("in place again", rejuvenate(lab, "store")["outcome"] == "moved")
    with tempfile.TemporaryDirectory(prefix="godwit-test-") as folder:
        path = os.path.join(folder, "store.gw")
        lab("checkpoint", "store", "-o", path, "--leave-running")
        shown = json.loads(lab("image", "show", path, "--json").stdout)
        expect("name in the file: %s" % shown["workload"], shown["workload"] == "store")
    steady(clients, 4, "after a checkpoint")
    total = clients.finish()
    expect("clients: %s" % total, not total["total_wrong"] and not total["total_lost"] and
           not total["reopened"])
    lab("rm", "--force", "store")
    for node in ("n1", "n2"):
        wait_for("%s to be clean" % node, lambda node=node: not traces(lab, node), 10)


# Where something is killed; whether it is in the new capsule afterwards (None: either).
STEPS = [
    ("node.marked", False), ("node.before_mover", False), ("source.prepared", False),
    ("source.round_done", False), ("source.frozen", False), ("source.before_end_mark", False),
    ("source.after_end_mark", None), ("replica.apply_pages", False),
    ("replica.restore_tasks", False), ("destination.ready", False), ("node.before_commit", False),
    ("node.after_commit", True), ("destination.committed", True), ("destination.settled", True),
]


def killed(lab, faults, times):
    del times
    address = lab.start("svc", os.path.join(lab.build, "memory_server"), "--port", PORT, "--mib",
                        16, "--dirty-pages-per-s", 1000, "--threads", 2, port=PORT)
    clients = lab.pulse("echo", address, PORT, connections=3, interval_us=1000)
    steady(clients, 3, "before")
    for point, new in STEPS:
        before = capsules(lab, "n1")
        faults.arm(point, "kill")
        result = rejuvenate(lab, "svc")
        hit = faults.hit_by_now()
        faults.disarm()
        expect("%s was not hit: %s" % (point, result), hit)

        def settled():
            known = lab("nodes", "--json", check=False)
            if movers() or known.returncode != 0 or \
                    any(each["state"] != "ready" for each in json.loads(known.stdout)):
                return False
            return lab("inspect", "svc", check=False).returncode == 0 and \
                lab.inspect("svc")["state"] == "running" and len(copies()) == 1
        wait_for("%s: an end" % point, settled, 30)
        one_capsule(lab, "n1", point)
        steady(clients, 3, point)
        moved = capsules(lab, "n1") != before
        expect("%s: %s, then %s" % (point, before, capsules(lab, "n1")), new in (None, moved))
        print("  %-28s %-14s ok" % (point, "new capsule" if moved else "runs on"), flush=True)
    total = clients.finish()
    expect("clients: %s" % total, not total["total_wrong"] and not total["total_lost"] and
           not total["reopened"])
    lab("rm", "--force", "svc")


def daemon_again(lab, faults, times):
    """A daemon that is started again knows which capsule it is."""
    del faults, times
    address = lab.start("svc", os.path.join(lab.build, "memory_server"), "--port", PORT, "--mib", 8,
                        port=PORT)
    clients = lab.pulse("echo", address, PORT, connections=2, interval_us=1000)
    expect("in place", rejuvenate(lab, "svc")["outcome"] == "moved")
    with open("/run/godwit/%s/n1/pid" % lab_name()) as text:
        keeper = int(text.read().split()[0])

    def child():
        with open("/proc/%d/task/%d/children" % (keeper, keeper)) as text:
            return [int(each) for each in text.read().split()]
    before = child()
    os.kill(before[0], 9)
    wait_for("another daemon", lambda: child() and child() != before, 10)
    wait_for("its service", lambda: lab("inspect", "svc", check=False).returncode == 0 and
             lab.inspect("svc")["state"] == "running" and lab.inspect("svc")["pid"], 10)
    steady(clients, 2, "after a new daemon")
    expect("in place again", rejuvenate(lab, "svc")["outcome"] == "moved")
    steady(clients, 2, "after that")
    clients.finish()
    lab("stop", "svc")
    wait_for("its end", lambda: lab.inspect("svc")["state"] == "exited", 10)
    lab("rm", "svc")
    wait_for("n1 to be clean", lambda: not traces(lab, "n1"), 10)


CASES = [("redis", redis_under_load), ("daemon", daemon_again), ("killed", killed)]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("godwit")
    parser.add_argument("--only", default="")
    parser.add_argument("--times", type=int, default=10)
    options = parser.parse_args()
    faults = Faults()
    try:
        with godwit_lab.Lab(options.godwit) as lab:
            for name, case in CASES:
                if options.only not in name:
                    continue
                begin = time.monotonic()
                try:
                    case(lab, faults, options.times)
                except Failure as failure:
                    raise Failure("%s: %s" % (name, failure))
                print("%-36s ok  %.1f s" % (name, time.monotonic() - begin), flush=True)
    finally:
        faults.remove()
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Failure as failure:
        print("rejuvenate_test: %s" % failure, file=sys.stderr)
        sys.exit(1)
