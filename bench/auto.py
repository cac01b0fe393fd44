"""What does --strategy auto choose, and does it come true what it says?

Services of two sizes that write their memory at two rates, all of it or the first 8 MiB of it, over the
lab's wires as they are and shaped to 2 Gbit/s and 500 Mbit/s (tbf at both nodes): 24 combinations, each
moved there and back. Predicted is what the move itself said (of the freeze by its last decision, of
all of it when it had measured figures first); the error is |measured / predicted - 1|.
"""

import itertools
import os
import time

import common

SIZES = (64, 256)
RATES = (1000, 30000)
HOT = (8, 0)
LINKS = ("", "2gbit", "500mbit")
# Or "sparse", which shrinks to a quarter; noise does not shrink.
FILL = os.environ.get("GODWIT_FILL") or "noise"


def shape(lab, rate, add):
    if not rate:
        return
    for node in ("n1", "n2"):
        lab("lab", "exec", node, "--", "tc", "qdisc", "add" if add else "del", "dev", "up0", "root",
            *(("tbf", "rate", rate, "burst", "512k", "latency", "20ms") if add else ()))


def one(lab, number, link, mib, rate, hot, errors):
    name = "auto%d" % number
    address = lab.start(name, lab.build + "/memory_server", "--port", common.PORT, "--mib", mib,
                        "--dirty-pages-per-s", rate, "--hot-mib", hot, "--threads", 1,
                        "--fill", FILL, port=common.PORT, timeout=60)
    client = lab.pulse("echo", address, common.PORT, interval_us=500)
    shape(lab, link, True)
    moves = []
    try:
        for node in ("n2", "n1"):
            time.sleep(0.3)
            client.mark()
            moved = lab.move(name, node, timeout=120)
            seen = client.mark()
            if seen["wrong"] or seen["lost"]:
                raise common.godwit_lab.Failure("wrong or lost answers: %s" % seen)
            moved["gap_ns"] = seen["longest_gap_us"] * 1000
            moves.append(moved)
    finally:
        shape(lab, link, False)
    client.finish()
    lab("rm", "-f", name)
    for moved in moves:
        for what, measured in (("downtime", "freeze_ns"), ("total", "total_ns")):
            errors[what].append(abs(moved[measured] / moved["predicted_%s_ns" % what] - 1))

    def both(field, unit=1e6, text="%.1f"):
        return " / ".join(text % (m[field] / unit) for m in moves)
    return [link or "as it is", str(mib), str(rate), str(hot or mib),
            " / ".join(m["strategy"] for m in moves), both("rounds", 1, "%d"),
            both("predicted_downtime_ns"), both("freeze_ns"), both("gap_ns"),
            both("predicted_total_ns", 1e9, "%.2f"), both("total_ns", 1e9, "%.2f")]


def run(lab, quick):
    errors = {"downtime": [], "total": []}
    every = list(itertools.product(LINKS, SIZES, RATES, HOT))
    rows = [one(lab, number, *each, errors)
            for number, each in enumerate(every[::3] if quick else every)]
    title = "What auto chooses, there / back (median error: downtime %.0f %%, total %.0f %%)" % (
        100 * common.median(errors["downtime"]), 100 * common.median(errors["total"]))
    return (title, ["link", "MiB", "pages/s", "of MiB", "chosen", "rounds", "downtime predicted, ms",
                    "freeze, ms", "client's longest gap, ms", "total predicted, s", "total, s"], rows)
