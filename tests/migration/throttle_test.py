#!/usr/bin/env python3
"""A program that writes faster than the link carries moves by rounds alone with --throttle, and gets
its CPU time back whatever happens.

  throttle_test.py build/godwit
"""
import glob
import json
import os
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, ".."))
sys.path.insert(0, os.path.join(HERE, "..", "faults"))
import godwit_lab  # noqa: E402
from breaking import Faults, copies, movers  # noqa: E402
from godwit_lab import Failure, lab_id, lab_name, wait_for  # noqa: E402

SERVICE, PORT = "svc", 7000
LINK = ("--bandwidth", "40MiB", "--compress", "none")


def expect(what, is_so):
    if not is_so:
        raise Failure(what)


def limits():
    """Groups that limit a service of this lab, of cgroup v1 and v2."""
    found = glob.glob("/sys/fs/cgroup/*/**/godwit-%s-n*" % lab_id(), recursive=True)
    for path in glob.glob("/sys/fs/cgroup/**/godwit/%s-n*/*/work/cpu.max" % lab_id(), recursive=True):
        with open(path) as text:
            if not text.read().startswith("max"):
                found.append(path)
    return found


def group():
    """Where the service is in all hierarchies but ours."""
    with open("/proc/%d/cgroup" % copies()[0]) as text:
        return [line.strip() for line in text if "godwit/" not in line]


def answers(clients):
    seen = clients.mark()
    checked, end = seen["checked"], time.monotonic() + 20
    while checked < 50:
        expect("no answers", time.monotonic() < end)
        time.sleep(0.02)
        seen = clients.mark()
        checked += seen["checked"]
        expect(json.dumps(seen), not seen["wrong"] and not seen["lost"] and seen["alive"] == 3)


def possible(lab):
    done = lab("migrate", SERVICE, "n2", "--dry-run", "--throttle", "--json", check=False)
    result = json.loads(done.stdout)
    if any(each["code"] == "cpu.throttle" for each in result["refusals"]):
        print("skipped: %s" % result["refusals"][0]["reason"])
        return False
    return True


def start_move(lab, *options):
    return subprocess.Popen([lab.godwit, "migrate", SERVICE, "n2", "--json", "--strategy", "precopy",
                             *LINK, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            text=True)


def daemon_pid(node):
    with open("/run/godwit/%s/%s/pid" % (lab_name(), node)) as text:
        keeper = int(text.read().split()[0])
    with open("/proc/%d/task/%d/children" % (keeper, keeper)) as text:
        return [int(each) for each in text.read().split()]


def is_over(lab, clients, before):
    wait_for("its rollback", lambda: lab("inspect", SERVICE, check=False).returncode == 0 and
             lab.inspect(SERVICE)["state"] == "running" and not movers(), 30)
    wait_for("its limit to be lifted", lambda: not limits(), 10)
    expect("its groups: %s, before %s" % (group(), before), group() == before)
    answers(clients)


def killed(lab, faults, clients, before):
    faults.arm("source.throttled", "kill")
    start_move(lab, "--throttle").communicate(timeout=60)
    expect("source.throttled was not hit", faults.was_hit())
    is_over(lab, clients, before)


def all_killed(lab, faults, clients, before):
    faults.arm("source.throttled", "hang")
    process = start_move(lab, "--throttle")
    wait_for("it to be limited", lambda: faults.was_hit() and limits(), 60)
    daemon = daemon_pid("n1")
    for pid in movers() + daemon:
        os.kill(pid, 9)
    process.communicate(timeout=60)
    is_over(lab, clients, before)


def main():
    faults = Faults()
    try:
        with godwit_lab.Lab(sys.argv[1]) as lab:
            address = lab.start(SERVICE, os.path.join(lab.build, "memory_server"), "--port", PORT,
                                "--mib", 64, "--dirty-pages-per-s", 30000, port=PORT)
            clients = lab.pulse("echo", address, PORT, connections=3, interval_us=2000)
            answers(clients)
            if not possible(lab):
                return 0
            before = group()
            result = lab.migrate(SERVICE, "n2", "--strategy", "precopy", *LINK)
            expect(json.dumps(result), result["outcome"] == "rolled_back" and
                   "does not converge" in result["error"])
            refused = lab("migrate", SERVICE, "n2", "--strategy", "cold", "--throttle", check=False)
            expect(refused.stderr, refused.returncode not in (0, 4))
            killed(lab, faults, clients, before)
            all_killed(lab, faults, clients, before)
            process = start_move(lab, "--throttle")
            shown = wait_for("inspect to say so", lambda: process.poll() is not None or
                             lab.inspect(SERVICE)["throttle_percent"], 60)
            expect("inspect: %s" % shown, shown in (50, 25, 12, 6))
            expect("no limit is in effect", limits() or process.poll() is not None)
            out, err = process.communicate(timeout=120)
            result = json.loads(out)
            expect(out + err, result["outcome"] == "moved" and result["throttled_ns"] > 0 and
                   result["throttle_percent"] in (50, 25, 12, 6))
            answers(clients)
            expect("left: %s" % limits(), not limits())
            expect("its groups: %s, before %s" % (group(), before), group() == before)
            total = clients.finish()
            expect("clients: %s" % total, not total["total_wrong"] and not total["total_lost"])
            for each in sorted(result["spans"], key=lambda span: -span["ns"])[:3]:
                print("  %-32s %.2f ms" % (each["name"], each["ns"] / 1e6))
            print("moved at %d %% of its CPU time, limited for %.1f s, freeze %.1f ms" %
                  (result["throttle_percent"], result["throttled_ns"] / 1e9,
                   result["freeze_ns"] / 1e6))
    finally:
        faults.remove()
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Failure as failure:
        print("throttle_test: %s" % failure, file=sys.stderr)
        sys.exit(1)
