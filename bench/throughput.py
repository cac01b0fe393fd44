"""How fast do bytes go, and what do they cost?

A 1 GiB service that stands still, with TLS on the movers' connections and without. Total time, and the
rate of the stream by the move's own figure while it writes, uncompressed, against iperf3 for the same
bytes between the same two nodes (one connection), and against what TLS's cipher can do at all on one
core (openssl speed, 16 KiB at a time, as TLS's records are). CPU time is that of the daemons and of all
their movers, both sides, divided by the bytes of the pages that were sent, compressed or not.

Ten services of 64 MiB at once, against the same ten one after the other. And what a client of a redis
server gets, in requests a second, while the server is in the rounds of a move.
"""

import concurrent.futures
import json
import re
import subprocess
import time

import common

SERVICES = 10
SERVICE_MIB = 64
KEYS = 400000


def iperf(bytes_count):
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


def cipher_rate():
    """Bytes a second of one core: the largest block of openssl's table, 16 KiB."""
    out = common.godwit_lab.run("openssl", "speed", "-seconds", "1", "-bytes", "16384", "-evp",
                                "aes-128-gcm").stdout
    return float(re.search(r"^AES-128-GCM\s+([0-9.]+)k", out, re.MULTILINE).group(1)) * 1000


def one_large(lab, count, *options):
    """Moves of 1 GiB: results, and CPU time of all our processes per GiB."""
    name = "throughput"
    address = common.memory_server(lab, name, 1024)
    client = lab.pulse("echo", address, common.PORT, interval_us=2000)
    before = common.daemon_cpu_seconds()
    results = common.moves(lab, name, client, 1024, count=count, options=options)
    cpu = common.daemon_cpu_seconds() - before
    client.finish()
    lab("rm", "-f", name)
    sent = common.median([max(r["bytes_wire"], r.get("bytes_pages", 0)) for r in results])
    return results, cpu / (sent * (len(results) + 2) / 2**30)


def ten(lab):
    """Seconds for ten services one after the other, and for all at once."""
    names = ["ten%d" % i for i in range(SERVICES)]
    for name in names:
        common.memory_server(lab, name, SERVICE_MIB)
    took = []
    with common.Warmth(SERVICES * SERVICE_MIB * 2) as memory:
        common.wait_until_the_host_is_quiet()
        for turn in range(4):
            node = "n2" if turn % 2 == 0 else "n1"
            memory.hold()
            time.sleep(1)
            begin = time.monotonic()
            # As many commands either way.
            moving = []
            for name in names:
                moving.append(subprocess.Popen(
                    [lab.godwit, "migrate", name, node, "--json", "--compress", "none"],
                    stdout=subprocess.PIPE, text=True))
                if turn < 2:
                    moving[-1].wait(60)
            for each in moving:
                out, _ = each.communicate(timeout=120)
                if json.loads(out)["outcome"] != "moved":
                    raise common.godwit_lab.Failure("ten services: %s" % out)
            took.append(time.monotonic() - begin)
    for name in names:
        lab("rm", "-f", name)
    return took


def redis_in_rounds(lab, count):
    """Requests a second while it does not move, and while it does, of the same client: medians."""
    name = "rounds"
    address = lab.start(name, "/usr/bin/redis-server", "--bind", "0.0.0.0", "--port", "6379", "--save", "",
                        "--protected-mode", "no", "--enable-debug-command", "yes", port=6379)

    def ask(*words):
        return lab.client("redis-cli", "-h", address, *words, timeout=120).stdout
    ask("debug", "populate", KEYS, "filler", "900")
    if int(ask("dbsize")) != KEYS:
        raise common.godwit_lab.Failure("redis holds %s keys" % ask("dbsize"))
    load = subprocess.Popen(lab.client_command(
        "redis-benchmark", "-h", address, "-t", "get", "-n", 100000000, "-c", 20, "-r", KEYS),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def requests_per_s():
        at, total = [], []
        for pause in (1.5, 0):
            at.append(time.monotonic())
            total.append(int(re.search(r"total_commands_processed:(\d+)", ask("info", "stats")).group(1)))
            time.sleep(pause)
        return (total[1] - total[0]) / (at[1] - at[0])
    idle, moving = [], []
    try:
        with common.Warmth(1024) as memory:
            common.wait_until_the_host_is_quiet()
            for i in range(count):
                memory.hold()
                time.sleep(0.5)
                idle.append(requests_per_s())
                # So that the first round lasts longer than is measured.
                with concurrent.futures.ThreadPoolExecutor(1) as beside:
                    move = beside.submit(lab.move, name, "n2" if i % 2 == 0 else "n1", "--bandwidth",
                                         "200MiB", "--compress", "none", timeout=120)
                    time.sleep(0.2)
                    rate = requests_per_s()
                    if move.done():
                        raise common.godwit_lab.Failure("the rounds were over: %s" % move.result())
                    moving.append(rate)
                    move.result()
    finally:
        load.kill()
        load.wait(20)
    lab("rm", "-f", name)
    return common.median(idle), common.median(moving)


def rate_row(title, results, link, cipher):
    rate = common.median([r["bytes_per_s"] for r in results])
    text = "%.2f of iperf3's (%.2f against %.2f GB/s)" % (rate / link, rate / 1e9, link / 1e9)
    if cipher:
        text += "; %.2f of openssl speed's %.2f GB/s" % (rate / cipher, cipher / 1e9)
    return [title, "0.70", text]


def run(lab, quick):
    count = 4 if quick else common.MOVES
    results, cpu = one_large(lab, count)
    sent = common.median([max(r["bytes_wire"], r.get("bytes_pages", 0)) for r in results])
    times = [iperf(int(sent)) for _ in range(3 if quick else 5)]
    total = common.median([r["total_ns"] for r in results]) / 1e9
    link = sent / common.median(times)
    rows = [
        ["total time against iperf3", "1.5 (2.5)", "%.2f (%.2f s, iperf3 %.2f s)" % (
            total / common.median(times), total, common.median(times))],
        ["CPU time per GiB, all our processes, s", "0.9 (1.5)", "%.2f" % cpu]]
    results, _ = one_large(lab, count, "--compress", "none")
    rows.append(rate_row("uncompressed stream under TLS", results, link, cipher_rate()))
    took = ten(lab)
    rows.append(["ten services of %d MiB at once, against one after the other" % SERVICE_MIB, "1.2",
                 "%.2f (%.2f s against %.2f s)" % (sum(took[2:]) / sum(took[:2]), sum(took[2:]) / 2,
                                                   sum(took[:2]) / 2)])
    idle, moving = redis_in_rounds(lab, 4 if quick else 8)
    rows.append(["redis-benchmark in the rounds, against undisturbed", "0.90",
                 "%.2f (%.0f against %.0f requests/s)" % (moving / idle, moving, idle)])
    return ("Throughput and cost", ["what", "goal (at least)", "measured"], rows)


def run_plain(lab, quick):
    """In a lab with --data-tls off."""
    count = 4 if quick else common.MOVES
    results, cpu = one_large(lab, count, "--compress", "none")
    sent = common.median([r["bytes_wire"] for r in results])
    link = sent / common.median([iperf(int(sent)) for _ in range(3 if quick else 5)])
    return ("Without TLS", ["what", "goal (at least)", "measured"], [
        rate_row("uncompressed stream", results, link, None),
        ["CPU time per GiB, all our processes, s", "0.9 (1.5)", "%.2f" % cpu]])
