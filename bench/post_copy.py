"""Memory that follows: when does the service run, what does it wait for, and how fast is the rest there?

Activation: from the first task stopped until the replica ran, of services from 16 MiB to 4 GiB whose
memory all follows; beside it what a client saw.
A remote fault: the longest of what the sweeper (tests/subjects) waited for its pages, one page each in
random order, while little is pushed.
Push: what is pushed a second while the sweeper goes through its memory, against iperf3 for the same
bytes on the same path.
Hybrid: a service that dirties more than a link of 1 Gbit/s (tbf) carries.
Lazy: a checkpoint file restored with --lazy, and without.
"""

import json
import os
import tempfile
import time

import common
from throughput import iperf


def window(lab, address):
    """What the sweeper saw since it was asked last."""
    code = ("import socket,sys; s=socket.create_connection((sys.argv[1], int(sys.argv[2])), 5); "
            "print(s.makefile().readline())")
    return json.loads(lab.client("python3", "-c", code, address, common.PORT).stdout)


def sweeper(lab, name, *options):
    return lab.start(name, lab.build + "/sweeper", "--port", common.PORT, *map(str, options),
                     port=common.PORT, timeout=60)


def activation(lab, mib):
    name = "follows%d" % mib
    address = common.memory_server(lab, name, mib, dirty=1000)
    client = lab.pulse("echo", address, common.PORT, interval_us=200)
    results = common.moves(lab, name, client, mib, count=4 if mib > 2048 else common.MOVES,
                           options=("--strategy", "postcopy"))
    client.finish()
    lab("rm", "-f", name)
    return ["activation, %d MiB, ms" % mib, "10",
            "%s; client's longest gap %s; all there after %s ms" % (
                common.spread([r["freeze_ns"] for r in results], 1e6),
                common.spread([r["gap_ns"] for r in results], 1e6),
                common.spread([r["post_copy_ns"] for r in results], 1e6))]


def faults(lab, moves):
    address = sweeper(lab, "faults", "--mib", 64, "--order", "random", "--pause-ns", 200000)
    waits = []
    with common.Warmth(512) as memory:
        for i in range(moves):
            time.sleep(0.5)
            memory.hold()
            window(lab, address)
            result = lab.move("faults", "n2" if i % 2 == 0 else "n1", "--strategy", "postcopy",
                              "--bandwidth", "8MiB")
            seen = window(lab, address)
            if seen["waits"] < result["page_faults"] / 2:
                raise common.godwit_lab.Failure("%s, but the program saw %s" % (result, seen))
            waits.append(seen)
    lab("rm", "-f", "faults")
    return ["a remote fault as the program sees it, us", "p50 100, p99 1000",
            "p50 %s, p99 %s, longest %s (%d waits a move)" % (
                common.spread([w["p50_us"] for w in waits]),
                common.spread([w["p99_us"] for w in waits]),
                common.spread([w["max_us"] for w in waits]),
                common.median([w["waits"] for w in waits]))]


def push(lab, moves):
    rows = []
    for what, options in (("sweeping reader", ()), ("sweeping writer", ("--write",)),
                          ("program that sleeps", ("--pause-ns", 10**9))):
        address = sweeper(lab, "push", "--mib", 1024, *options)
        rates = []
        with common.Warmth(1280) as memory:
            for i in range(moves + 2):
                time.sleep(0.5)
                memory.hold()
                window(lab, address)
                result = lab.move("push", "n2" if i % 2 == 0 else "n1", "--strategy", "postcopy")
                if i >= 2:
                    rates.append(result["pages_left_behind"] * 4096 / result["post_copy_ns"] * 1e9)
            idle = [2**30 / iperf(2**30) for _ in range(3)]
        lab("rm", "-f", "push")
        rows.append(["push, 1 GiB, %s, of the idle link" % what, "0.60",
                     "%.2f (%s MiB/s, iperf3 %.0f)" % (common.median(rates) / common.median(idle),
                                                       common.spread(rates, 2**20),
                                                       common.median(idle) / 2**20)])
    return rows


def hybrid(lab, moves):
    for node in ("n1", "n2"):
        lab("lab", "exec", node, "--", "tc", "qdisc", "add", "dev", "up0", "root", "tbf", "rate",
            "1gbit", "burst", "256k", "latency", "20ms")
    address = common.memory_server(lab, "hybrid", 256, dirty=60000)
    client = lab.pulse("echo", address, common.PORT, interval_us=200)
    results = common.moves(lab, "hybrid", client, 256, count=moves, options=("--strategy", "hybrid"))
    client.finish()
    lab("rm", "-f", "hybrid")
    for node in ("n1", "n2"):
        lab("lab", "exec", node, "--", "tc", "qdisc", "del", "dev", "up0", "root")
    return ["hybrid, 256 MiB, 60,000 pages/s dirtied, 1 Gbit/s: client's longest gap, ms", "50",
            "%s; freeze %s; total %s s" % (common.spread([r["gap_ns"] for r in results], 1e6),
                                           common.spread([r["freeze_ns"] for r in results], 1e6),
                                           common.spread([r["total_ns"] for r in results], 1e9))]


def lazy(lab, mib, count):
    """From the call until the service runs, of a file that is in memory (page cache)."""
    name = "lazy%d" % mib
    common.memory_server(lab, name, mib, dirty=1000)
    whole, lazily, rest = [], [], []
    with tempfile.TemporaryDirectory(prefix="godwit-bench-") as folder, common.Warmth(mib + 256) as memory:
        path = os.path.join(folder, "image")
        lab("checkpoint", name, "-o", path, timeout=300)
        for i in range(2 * count):
            options = ("--lazy",) if i % 2 else ()
            memory.hold()
            done = json.loads(lab("restore", path, "--node", "n2", "--json", *options, timeout=300).stdout)
            if i % 2:
                lazily.append(done["total_ns"] - done["post_copy_ns"])
                rest.append(done["post_copy_ns"])
            else:
                whole.append(done["total_ns"])
            lab("rm", "-f", name)
    return ["restore of %d MiB until it runs, ms" % mib, "-",
            "lazily %s, all there after %s; whole %s" % (
                common.spread(lazily, 1e6), common.spread(rest, 1e6), common.spread(whole, 1e6))]


def run(lab, quick):
    few = 3 if quick else 6
    rows = [activation(lab, mib) for mib in ((16, 256) if quick else (16, 256, 1024, 4096))]
    rows.append(faults(lab, few))
    rows += push(lab, few)
    rows.append(hybrid(lab, few))
    rows += [lazy(lab, mib, few) for mib in ((16, 256) if quick else (16, 256, 1024))]
    return ("Post-copy", ["what", "goal", "measured"], rows)
