"""What does compression gain, and where? 256 MiB of text, of noise and of sparse pages.

Over the lab's own wires and over ones shaped to a rate (tbf, both ways); for each, moves without
compression and with the others, in turns. Total time, CPU time of the source's mover, and how many
times smaller the pages were on the wire.
"""

import os

import common

MIB = 256


def shape(mbit):
    for node in ("n1", "n2"):
        change = ["add", "dev", "up0", "root", "tbf", "rate", "%dmbit" % mbit, "burst", "256k",
                  "latency", "50ms"] if mbit else ["del", "dev", "up0", "root"]
        common.godwit_lab.run("tc", "-n", common.in_node(node)[3], "qdisc", *change)


def start(lab, name, fill):
    return lab.start(name, os.path.join(lab.build, "memory_server"), "--port", common.PORT, "--mib",
                     MIB, "--dirty-pages-per-s", 1000, "--fill", fill, port=common.PORT, timeout=120)


def rows_of(lab, name, client, mbit, fill, ways, turns):
    results = {way: [] for way in ways}
    for _ in range(turns):
        for way in ways:
            # Two moves do not count (common.moves), one does.
            results[way] += common.moves(lab, name, client, MIB, count=1,
                                         options=("--compress", way))
    for way in ways:
        total = [r["total_ns"] for r in results[way]]
        cpu = common.median([r["source_cpu_ns"] for r in results[way]]) / 1e9
        gain = common.median([r["bytes_pages"] / max(1, r["bytes_pages_wire"])
                              for r in results[way]])
        used = sorted({r["compression"] for r in results[way]})
        yield ["%s Mbit/s" % mbit if mbit else "as it is", fill, way, common.spread(total, 1e9),
               "%.2f" % cpu, "%.1f (%s)" % (gain, ", ".join(used))]


def run(lab, quick):
    rows = []
    turns = 2 if quick else 4
    for fill in ("words", "noise", "sparse"):
        name = "compress"
        address = start(lab, name, fill)
        client = lab.pulse("echo", address, common.PORT, interval_us=2000)
        for mbit in (0, 2000, 200) if fill == "words" else (0, 400):
            ways = ("none", "auto", "lz4", "zstd") if fill == "words" else ("none", "auto")
            if mbit:
                shape(mbit)
            rows += rows_of(lab, name, client, mbit, fill, ways, 1 if mbit == 200 else turns)
            if mbit:
                shape(0)
        client.finish()
        lab("rm", "-f", name)
    return ("Compression, 256 MiB", ["link", "memory", "--compress", "total, s", "source CPU, s",
                                     "pages smaller by"], rows)
