"""What does a capsule cost a service that does not move? redis-benchmark, GET, from the client host.

The peer is the same redis-server in a plain network namespace with a veth on the same bridge of
the same node, in a session of its own as the capsule's. Short runs alternate; the ratio is the median
of those of a run and the next one.
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
                                 stdout=subprocess.DEVNULL, cwd="/", start_new_session=True)
        common.godwit_lab.wait_for("the plain redis-server", lambda: lab.client(
            "redis-cli", "-h", ADDRESS, "ping", check=False).returncode == 0, 20)
        pairs = [(requests_per_s(lab, address, 30000), requests_per_s(lab, ADDRESS, 30000))
                 for _ in range(9 if quick else 25)]
    finally:
        if plain is not None:
            plain.terminate()
            plain.wait(20)
        ip("netns", "delete", PEER)
    lab("rm", "-f", "network")
    inside, outside = map(common.median, zip(*pairs))
    ratios = [one / other for one, other in pairs]
    return ("A service that does not move", ["what", "goal (at least)", "measured"], [
        ["redis-benchmark GET, capsule against plain namespace", "1.00 (0.97)",
         "%s (%.0f against %.0f requests/s)" % (common.spread(ratios), inside, outside)]])
