"""What does a capsule cost a service that does not move? redis-benchmark, GET, from the client host.

The peer is the same redis-server in a plain network namespace with a veth on the same bridge of
the same node. Runs alternate; the ratio is that of the medians.
"""

import subprocess

import common

PEER = "gwbench"
ADDRESS = "10.77.127.7"


def ip(*arguments):
    common.godwit_lab.run("ip", *arguments)


def requests_per_s(lab, address, count):
    done = lab.client("redis-benchmark", "-h", address, "-t", "get", "-n", count, "-c", 20, "--csv",
                      timeout=120)
    return float(done.stdout.strip().splitlines()[-1].split(",")[1].strip('"'))


def run(lab, quick):
    command = ["/usr/bin/redis-server", "--bind", "0.0.0.0", "--port", "6379", "--save", "",
               "--protected-mode", "no"]
    address = lab.start("network", *command, port=6379)
    ip("netns", "add", PEER)
    plain = None
    try:
        node = common.in_node("n1")[3]
        ip("link", "add", "gwbench0", "netns", node, "type", "veth", "peer", "name", "eth0", "netns",
           PEER)
        ip("-n", node, "link", "set", "gwbench0", "master", "gw0", "up")
        ip("-n", PEER, "address", "add", ADDRESS + "/16", "dev", "eth0")
        ip("-n", PEER, "link", "set", "eth0", "up")
        ip("-n", PEER, "link", "set", "lo", "up")
        plain = subprocess.Popen(["ip", "netns", "exec", PEER] + command,
                                 stdout=subprocess.DEVNULL, cwd="/")
        common.godwit_lab.wait_for("the plain redis-server", lambda: lab.client(
            "redis-cli", "-h", ADDRESS, "ping", check=False).returncode == 0, 20)
        count = 20000 if quick else 100000
        inside, outside = [], []
        for _ in range(3 if quick else 7):
            inside.append(requests_per_s(lab, address, count))
            outside.append(requests_per_s(lab, ADDRESS, count))
    finally:
        if plain is not None:
            plain.terminate()
            plain.wait(20)
        ip("netns", "delete", PEER)
    lab("rm", "-f", "network")
    return ("A service that does not move", ["what", "goal (at least)", "measured"], [
        ["redis-benchmark GET, capsule against plain namespace", "1.00 (0.97)",
         "%.3f (%.0f against %.0f requests/s)" % (common.median(inside) / common.median(outside),
                                                  common.median(inside), common.median(outside))]])
