#!/usr/bin/env python3
"""A service moves on each kind of network with clients of IPv4 and IPv6, on TCP connections that stay
open and by UDP: nodes on one segment, and nodes that an overlay joins, whichever of them is the
clients' gateway; also with other addresses than a lab's usual ones.

  networks_test.py build/godwit [--only TEXT]
"""
import argparse
import json
import os
import subprocess
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
import godwit_lab  # noqa: E402
from godwit_lab import Failure, wait_for  # noqa: E402

PORT = 7000
UDP_SERVER = """
import socket
s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
s.bind(("::", 7001))
print("ready", flush=True)
while True:
    data, who = s.recvfrom(65536)
    s.sendto(data, who)
"""
# Numbered datagrams, some of them larger; at the end how many went out, and which did not come back.
UDP_CLIENT = """
import select, socket, sys, time
s = socket.socket(socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET, socket.SOCK_DGRAM)
s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
s.connect((sys.argv[1], 7001))
sent, missing, wrong, ending = 0, set(), 0, 0
print("ready", flush=True)
while not ending or (missing and time.monotonic() < ending + 10):
    if not ending and len(missing) < 200:
        s.send((b"%d " % sent).ljust(int(sys.argv[2]) if sent % 16 == 0 else 100, b"x"))
        missing.add(sent)
        sent += 1
    ready = select.select([s, sys.stdin] if not ending else [s], [], [], 0.002)[0]
    if sys.stdin in ready:
        ending = time.monotonic()
    while s in ready:
        try:
            number = int(s.recv(65536, socket.MSG_DONTWAIT).split()[0])
        except BlockingIOError:
            break
        if number not in missing:
            wrong += 1
        missing.discard(number)
print("%d %d %d" % (sent, len(missing), wrong), flush=True)
"""


class UdpClient:
    def __init__(self, lab, address, size):
        self.process = subprocess.Popen(
            lab.client_command("python3", "-c", UDP_CLIENT, address, size),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        lab.cleanup.callback(self.process.kill)
        if self.process.stdout.readline() != "ready\n":
            raise Failure("no UDP client")

    def finish(self):
        out, _ = self.process.communicate("\n", timeout=30)
        return [int(word) for word in out.split()]


def addresses(lab, name):
    """Of IPv4 and IPv6, without those of the link alone."""
    found = json.loads(lab("exec", name, "--", "ip", "-j", "addr", "show", "eth0").stdout)
    return [each["local"] for each in found[0]["addr_info"] if each["scope"] == "global"]


def answered(clients, what, enough=30):
    for client in clients:
        checked, end = 0, time.monotonic() + 20
        while checked < enough:
            seen = client.mark()
            if seen["wrong"] or seen["lost"] or seen["alive"] != 3:
                raise Failure("%s: %s" % (what, seen))
            checked += seen["checked"]
            if time.monotonic() > end:
                raise Failure("%s: no answers: %s" % (what, seen))
            time.sleep(0.02)


def gateway(lab, node, own):
    """The client host reaches the services through that node from here on."""
    for family, net in (("-4", own[0]), ("-6", own[1])):
        route = json.loads(lab.client("ip", family, "-j", "route", "show", net).stdout)
        if not route:
            raise Failure("the client has no route to %s" % net)
        lab.client("ip", family, "route", "replace", net, "via", node[family])


def uplinks(lab):
    """Addresses of each node on the clients' segment, by family."""
    found = {}
    for node in ("n1", "n2", "n3"):
        shown = json.loads(lab("lab", "exec", node, "--", "ip", "-j", "addr", "show", "up0").stdout)
        found[node] = {"-4" if each["family"] == "inet" else "-6": each["local"]
                       for each in shown[0]["addr_info"] if each["scope"] == "global"}
    return found


def moves(lab, nodes, between=lambda _: None, datagram=3000):
    """`datagram`: bytes of the larger ones, some frames of the clients' network."""
    lab.start("svc", os.path.join(lab.build, "memory_server"), "--port", PORT, "--mib", "8",
              "--dirty-pages-per-s", "500", port=PORT)
    lab("run", "--name", "udp", "--node", "n1", "-d", "--", "/usr/bin/python3", "-c", UDP_SERVER)
    wait_for("the UDP service", lambda: "ready" in lab("logs", "udp").stdout)
    found = addresses(lab, "svc")
    if len(found) != 2:
        raise Failure("addresses: %s" % found)
    clients = [lab.pulse("echo", each, PORT, connections=3, interval_us=1000) for each in found]
    datagrams = [UdpClient(lab, each, datagram) for each in addresses(lab, "udp")]
    answered(clients, "before")
    for number, node in enumerate(nodes):
        lab.move("svc", node)
        lab.move("udp", node)
        answered(clients, "at " + node)
        if addresses(lab, "svc") != found:
            raise Failure("addresses at %s: %s, before %s" % (node, addresses(lab, "svc"), found))
        between(number)
        answered(clients, "at " + node)
    for client in clients:
        total = client.finish()
        if total["total_wrong"] or total["total_lost"] or total["reopened"]:
            raise Failure("clients: %s" % total)
    for client in datagrams:
        sent, missing, wrong = client.finish()
        if missing or wrong or sent < 100:
            raise Failure("UDP: %d sent, %d did not come back, %d were wrong" % (sent, missing, wrong))
        print("  %d datagrams, all of them back" % sent)


def lan(godwit):
    with godwit_lab.Lab(godwit) as lab:
        moves(lab, ("n2", "n1"))


def other_addresses(godwit):
    with godwit_lab.Lab(godwit) as lab:
        lab("lab", "down")
        lab("lab", "up", "--subnet", "10.130.0.0/16", timeout=120)
        moves(lab, ("n2",))
        if not lab.inspect("svc")["address"].startswith("10.130."):
            raise Failure("address %s" % lab.inspect("svc")["address"])


def overlay(godwit):
    """Each node is the gateway once, while the service is on that one or on another."""
    with godwit_lab.Lab(godwit, nodes=3, overlay=True) as lab:
        own = [each for family in ("-4", "-6")
               for each in (route["dst"] for route in json.loads(
                   lab.client("ip", family, "-j", "route").stdout) if "gateway" in route)]
        if len(own) != 2:
            raise Failure("routes of the client: %s" % own)
        nodes = uplinks(lab)
        moves(lab, ("n3", "n2", "n1"),
              lambda number: gateway(lab, nodes["n%d" % (number % 3 + 1)], own),
              # One of more than a frame of the overlay is lost by those who do not know it yet.
              datagram=1200)


CASES = [("lan", lan), ("other addresses", other_addresses), ("overlay", overlay)]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("godwit")
    parser.add_argument("--only", default="")
    options = parser.parse_args()
    for name, case in CASES:
        if options.only not in name:
            continue
        begin = time.monotonic()
        try:
            case(options.godwit)
        except Failure as failure:
            raise Failure("%s: %s" % (name, failure))
        print("%-16s ok  %.1f s" % (name, time.monotonic() - begin), flush=True)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Failure as failure:
        print("networks_test: %s" % failure, file=sys.stderr)
        sys.exit(1)
