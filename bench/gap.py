"""How long does a client wait? One TCP connection, a request every 200 us, never reopened.

The gap is the longest time from one answer to the next during a move, as the client sees it; the
freeze is the source's own figure. Undisturbed: the same client's longest gap in a second without
a move, just before.

Other connections ask once a second each, spread over the second: some have a request under way at
any time, and so in the freeze. All at once, as it was, a thousand answers came in one burst of
some ten milliseconds, which was the gap without a move, and between two bursts all were idle.
"""

import time

import common


def row(lab, title, goal, mib, dirty=0, threads=0, files=0, connections=1):
    name = "gap%d" % mib
    address = common.memory_server(lab, name, mib, dirty, threads, files)
    extra = None
    if connections > 1:
        extra = lab.pulse("echo", address, common.PORT, connections=connections - 1,
                          interval_us=1000000)
    client = lab.pulse("echo", address, common.PORT)
    time.sleep(1)
    client.mark()
    time.sleep(1)
    idle = client.mark()["longest_gap_us"] * 1000
    results = common.moves(lab, name, client, mib)
    if extra is not None:
        seen = extra.finish()
        if seen["total_wrong"] or seen["total_lost"]:
            raise common.godwit_lab.Failure("the other connections: %s" % seen)
    client.finish()
    lab("rm", "-f", name)
    return [title, goal, common.spread([r["gap_ns"] for r in results], 1e6),
            common.spread([r["freeze_ns"] for r in results], 1e6), "%.2f" % (idle / 1e6),
            common.spread([r["total_ns"] for r in results], 1e9),
            "%d" % common.median([r["rounds"] for r in results])]


def run(lab, quick):
    rows = [row(lab, "16 MiB", "1 (2)", 16),
            row(lab, "1 GiB, 1,000 pages/s dirtied", "1.5 (3)", 1024, dirty=1000)]
    if not quick:
        rows.append(row(lab, "4 GiB, 20,000 pages/s dirtied", "3 (6)", 4096, dirty=20000))
    rows.append(row(lab, "256 MiB, 100 threads, 1,000 descriptors, 1,000 connections", "15 (40)", 256,
                    threads=98, files=1000, connections=1000))
    return ("Client's longest gap", ["service", "goal (at least), ms", "gap, ms", "freeze, ms",
                                     "undisturbed, ms", "total, s", "rounds"], rows)
