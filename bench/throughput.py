"""How fast do bytes go, and what do they cost? A 1 GiB service that stands still.

Total time against iperf3 for the same bytes between the same two nodes (one connection); CPU time
is that of the daemons and of all their movers, both sides, divided by the bytes of the pages that were
sent, compressed or not.
"""

import json
import subprocess

import common


def iperf(lab, bytes_count):
    server = subprocess.Popen(common.in_node("n2", "iperf3", "-s"), stdout=subprocess.DEVNULL)
    try:
        def once():
            done = common.godwit_lab.run(*common.in_node("n1", "iperf3", "-c", "10.77.0.12", "-n",
                                                         bytes_count, "-J"), check=False)
            if done.returncode != 0:
                return None  # the server is not there yet
            result = json.loads(done.stdout)
            return result if "sum_received" in result["end"] else None
        result = common.godwit_lab.wait_for("iperf3", once, 20)
    finally:
        server.terminate()
        server.wait(20)
    return result["end"]["sum_received"]["seconds"]


def run(lab, quick):
    name = "throughput"
    address = common.memory_server(lab, name, 1024)
    client = lab.pulse("echo", address, common.PORT, interval_us=2000)
    before = common.daemon_cpu_seconds()
    results = common.moves(lab, name, client, 1024, count=4 if quick else common.MOVES)
    after = common.daemon_cpu_seconds()
    client.finish()
    bytes_moved = common.median([max(r["bytes_wire"], r.get("bytes_pages", 0)) for r in results])
    times = [iperf(lab, int(bytes_moved)) for _ in range(3 if quick else 5)]
    total = common.median([r["total_ns"] for r in results]) / 1e9
    moved_gib = bytes_moved * (len(results) + 2) / 2**30
    lab("rm", "-f", name)
    return ("Throughput and cost, 1 GiB", ["what", "goal (at least)", "measured"], [
        ["total time against iperf3", "1.5 (2.5)", "%.2f (%.2f s, iperf3 %.2f s)" % (
            total / common.median(times), total, common.median(times))],
        ["CPU time per GiB, all our processes, s", "0.9 (1.5)",
         "%.2f" % ((after - before) / moved_gib)]])
