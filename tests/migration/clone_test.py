#!/usr/bin/env python3
"""Clones of services under load: the original and its clients notice nothing but milliseconds, the
clone has all of the data, an address of its own, and says nothing to the original's peers.

  clone_test.py build/godwit [--only TEXT]
"""
import argparse
import json
import os
import signal
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, ".."))
sys.path.insert(0, os.path.join(HERE, "..", "faults"))
import godwit_lab  # noqa: E402
from breaking import Faults, copies, movers, traces  # noqa: E402
from godwit_lab import Failure, wait_for  # noqa: E402

PORT = 7000
REDIS = 6379
KEYS = 20000
# Prints how many packets of IPv4 or IPv6 TCP and UDP came from an address, at the end of stdin.
SNIFFER = """
import select, socket, struct, sys
s = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(3))
wanted, seen = socket.inet_aton(sys.argv[1]), 0
print("ready", flush=True)
while True:
    ready = select.select([s, sys.stdin], [], [])[0]
    if s in ready:
        data, at = s.recvfrom(65536)
        if at[1] == 0x800 and data[12:16] == wanted and data[9] in (6, 17):
            seen += 1
    elif sys.stdin in ready:
        break
print(seen, flush=True)
"""


class Sniffer:
    """On the client host: what comes from the clone."""

    def __init__(self, lab, address):
        self.process = subprocess.Popen(lab.client_command("python3", "-c", SNIFFER, address),
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        if self.process.stdout.readline().strip() != "ready":
            raise Failure("no sniffer")

    def seen(self):
        return int(self.process.communicate(timeout=10)[0])


def expect(what, is_so):
    if not is_so:
        raise Failure(what)


def redis(lab, address, *words):
    return lab.client("redis-cli", "-h", address, "-p", REDIS, *words).stdout.strip()


def address_of(lab, name):
    return lab.inspect(name)["address"].split("/")[0]


def clone(lab, name, to, *options, check=True):
    done = lab("clone", name, "--name", to, "--json", *options, check=False, timeout=90)
    try:
        result = json.loads(done.stdout)
    except ValueError:
        result = {"outcome": "error", "error": done.stdout + done.stderr}
    if check and result["outcome"] != "cloned":
        raise Failure("clone: %s" % json.dumps(result))
    return result


def steady(clients, connections, what):
    """The original's clients: no answer wrong or lost, no connection gone."""
    seen = clients.mark()
    checked, end = seen["checked"], time.monotonic() + 20
    while checked < 50:
        expect("%s: no answers" % what, time.monotonic() < end)
        time.sleep(0.02)
        seen = clients.mark()
        checked += seen["checked"]
        expect("%s: %s" % (what, json.dumps(seen)), not seen["wrong"] and not seen["lost"])
    expect("%s: %s" % (what, json.dumps(seen)), seen["alive"] == connections)


def redis_is_cloned(lab, faults):
    del faults
    # Bound to its address by name, so that the clone's has to be another one.
    lab("run", "--name", "store", "--node", "n1", "-d", "--ip", "10.77.0.200", "--",
        "/usr/bin/redis-server", "--port", REDIS, "--bind", "10.77.0.200", "127.0.0.1", "--save",
        "", "--protected-mode", "no")
    address = address_of(lab, "store")
    lab.wait_until_it_listens("store", address, REDIS)
    redis(lab, address, "eval", "for i = 1, %d do redis.call('set', 'key:' .. i, 'value:' .. i .. "
          "string.rep('x', 200)) end" % KEYS, 0)
    clients = lab.pulse("redis", address, REDIS, connections=4, interval_us=500)
    steady(clients, 4, "before")
    for i, node in enumerate(("n2", "n1", "n2")):
        name, ip = "copy%d" % i, "10.77.0.%d" % (210 + i)
        before = redis(lab, address, "dbsize")
        sniffer = Sniffer(lab, ip)
        result = clone(lab, "store", name, "--node", node, "--ip", ip)
        expect("freeze of %s" % result["freeze_ns"], 0 < result["freeze_ns"] < 2e9)
        steady(clients, 4, "beside its clone on %s" % node)
        expect("it spoke to the original's peers", sniffer.seen() == 0)
        shown = lab.inspect(name)
        expect(json.dumps(shown), shown["node"] == node and shown["state"] == "running" and
               shown["address"].startswith(ip))
        size = redis(lab, ip, "dbsize")
        expect("keys of the clone: %s, before %s" % (size, before), int(size) >= int(before))
        value = redis(lab, ip, "getrange", "key:77", 0, 7)
        expect("data of the clone: %s" % value, value == "value:77")
        listed = redis(lab, ip, "client", "list").splitlines()
        expect("clients of the clone: %s" % listed, len(listed) == 1)
        # Two programs from here on.
        redis(lab, ip, "set", "mine", name)
        expect("shared", redis(lab, address, "get", "mine") == "")
        expect("hostname", lab("exec", name, "--", "hostname").stdout.strip() == name)
    total = clients.finish()
    expect("clients: %s" % total, not total["total_wrong"] and not total["total_lost"] and
           not total["reopened"])
    # A clone is a service like any other.
    lab.move("copy1", "n2")
    expect("moved clone", redis(lab, "10.77.0.211", "get", "mine") == "copy1")
    for name in ("store", "copy0", "copy1", "copy2"):
        lab("rm", "--force", name)


def many_connections(lab, faults):
    del faults
    address = lab.start("many", os.path.join(lab.build, "memory_server"), "--port", PORT, "--mib",
                        64, "--dirty-pages-per-s", 2000, "--threads", 4, "--files", 20, port=PORT)
    clients = lab.pulse("echo", address, PORT, connections=200, interval_us=20000)
    steady(clients, 200, "before")
    for node in ("n2", "n1"):
        clone(lab, "many", "copy", "--node", node)
        steady(clients, 200, "beside its clone on %s" % node)
        own = lab.pulse("echo", address_of(lab, "copy"), PORT, connections=3, interval_us=1000)
        steady(own, 3, "the clone's")
        own.finish()
        expect("the clone found its memory wrong", lab.inspect("copy")["state"] == "running")
        lab("rm", "--force", "copy")
    total = clients.finish()
    expect("clients: %s" % total, not total["total_wrong"] and not total["total_lost"])
    lab("rm", "--force", "many")


def refusals(lab, faults):
    del faults
    lab.start("one", os.path.join(lab.build, "memory_server"), "--port", PORT, "--mib", 1, port=PORT)
    lab.start("two", os.path.join(lab.build, "memory_server"), "--port", PORT, "--mib", 1, port=PORT)
    taken = address_of(lab, "two")
    for options, word in ((("--name", "two"), "already"), (("--name", "one"), "another"),
                          (("--name", "x", "--ip", taken), taken),
                          (("--name", "x", "--ip", "192.0.2.1"), "not in"),
                          (("--name", "x", "--node", "nowhere"), "nowhere"),
                          (("--name", "no/name"), "letters")):
        for node in ((), ("--node", "n2")) if "--node" not in options else ((),):
            done = lab("clone", "one", *options, *node, check=False)
            expect("%s: %s" % (options, done.stdout + done.stderr),
                   done.returncode != 0 and word in done.stdout + done.stderr)
    names = sorted(each["name"] for each in json.loads(lab("ps", "--json").stdout))
    expect("services %s" % names, names == ["one", "two"])
    expect("left on n2: %s" % traces(lab, "n2"), not traces(lab, "n2"))
    for name in ("one", "two"):
        lab("rm", "--force", name)


# Where something is killed; whether there is a clone afterwards (None: either).
STEPS = [
    ("source.prepared", False), ("source.round_done", False), ("source.frozen", False),
    ("source.before_end_mark", False), ("source.clone_sent", None), ("clone.named", False),
    ("replica.apply_pages", False), ("replica.restore_tasks", False), ("destination.ready", False),
    ("node.before_commit", False), ("node.after_commit", True), ("destination.committed", True),
    ("destination.settled", True),
]


def killed(lab, faults):
    address = lab.start("svc", os.path.join(lab.build, "memory_server"), "--port", PORT, "--mib",
                        16, "--dirty-pages-per-s", 1000, "--threads", 2, port=PORT)
    clients = lab.pulse("echo", address, PORT, connections=3, interval_us=1000)
    steady(clients, 3, "before")
    for node in ("n2", "n1"):
        for point, there in STEPS:
            faults.arm(point, "kill")
            result = clone(lab, "svc", "copy", "--node", node, check=False)
            hit = faults.hit_by_now()
            faults.disarm()
            expect("%s was not hit: %s" % (point, result), hit)
            what = "%s killed, clone on %s" % (point, node)

            def settled():
                known = lab("nodes", "--json", check=False)
                if movers() or known.returncode != 0 or \
                        any(each["state"] != "ready" for each in json.loads(known.stdout)):
                    return None
                done = lab("ps", "-a", "--json", check=False)
                states = {each["name"]: each["state"] for each in json.loads(done.stdout)} \
                    if done.returncode == 0 else {}
                return states if states.get("svc") == "running" and \
                    states.get("copy") in (None, "running") else None
            states = wait_for("%s: an end" % what, settled, 30)
            steady(clients, 3, what)
            if "copy" in states:
                expect("%s: a clone" % what, there in (True, None))
                own = lab.pulse("echo", address_of(lab, "copy"), PORT, connections=2,
                                interval_us=1000)
                steady(own, 2, what + ", the clone's")
                own.finish()
                lab("rm", "--force", "copy")
            else:
                expect("%s: no clone, %s" % (what, result), not there)
            other = {"svc"} if node == "n1" else set()

            def clean():
                return len(copies()) == 1 and {each.split("/")[-1].rstrip("/") or "x" for each in
                                               traces(lab, node) if "folder" in each} <= other
            try:
                wait_for("clean", clean, 20)
            except Failure:
                raise Failure("%s: left: %s, %s" % (what, traces(lab, node), copies()))
            # Name and address are free.
            print("  %-44s %-8s ok" % (what, "a clone" if "copy" in states else "none"), flush=True)
    total = clients.finish()
    expect("clients: %s" % total, not total["total_wrong"] and not total["total_lost"] and
           not total["reopened"])
    lab("rm", "--force", "svc")


def cancelled(lab, faults):
    del faults
    address = lab.start("svc", os.path.join(lab.build, "memory_server"), "--port", PORT, "--mib",
                        64, "--dirty-pages-per-s", 1000, port=PORT)
    clients = lab.pulse("echo", address, PORT, connections=3, interval_us=1000)
    process = subprocess.Popen([lab.godwit, "clone", "svc", "--name", "copy", "--node", "n2",
                                "--bandwidth", "4MiB", "--json"], stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True)
    wait_for("a mover", movers, 10)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    expect(out + err, json.loads(out)["outcome"] == "rolled_back" and process.returncode == 4)
    steady(clients, 3, "after a cancel")
    wait_for("n2 to be clean", lambda: not traces(lab, "n2"), 10)
    names = [each["name"] for each in json.loads(lab("ps", "-a", "--json").stdout)]
    expect("services %s" % names, names == ["svc"])
    clients.finish()
    lab("rm", "--force", "svc")


CASES = [("redis", redis_is_cloned), ("many connections", many_connections),
         ("refusals", refusals), ("cancelled", cancelled), ("killed", killed)]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("godwit")
    parser.add_argument("--only", default="")
    options = parser.parse_args()
    faults = Faults()
    try:
        with godwit_lab.Lab(options.godwit) as lab:
            for name, case in CASES:
                if options.only not in name:
                    continue
                begin = time.monotonic()
                try:
                    case(lab, faults)
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
        print("clone_test: %s" % failure, file=sys.stderr)
        sys.exit(1)
