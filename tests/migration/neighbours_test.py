#!/usr/bin/env python3
"""What a service's kernel knows of its neighbours moves with it: the first answers need no ARP.

  neighbours_test.py build/godwit
"""
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
import godwit_lab  # noqa: E402
from godwit_lab import Failure  # noqa: E402

PORT = 7000
# Nobody answers for these: they are there by the move alone.
STALE = ("10.77.9.9", "02:00:00:00:09:09", "stale")
FIXED = ("10.77.9.10", "02:00:00:00:09:10", "permanent")


def ip(lab, *command):
    return godwit_lab.run("nsenter", "-t", lab.inspect("svc")["pid"], "-n", "ip", *command).stdout


def main():
    with godwit_lab.Lab(sys.argv[1]) as lab:
        address = lab.start("svc", os.path.join(lab.build, "memory_server"), "--port", PORT, port=PORT)
        client = lab.pulse("echo", address, PORT)
        for neighbour, mac, state in (STALE, FIXED):
            ip(lab, "neigh", "replace", neighbour, "lladdr", mac, "nud", state, "dev", "eth0")
        for node in ("n2", "n1"):
            lab.move("svc", node)
            shown = ip(lab, "neigh")
            for neighbour, mac, state in (STALE, FIXED):
                line = "%s dev eth0 lladdr %s %s" % (neighbour, mac, state.upper())
                if line not in shown:
                    raise Failure("on %s: %s is missing in\n%s" % (node, line, shown))
        result = client.finish()
        if result["total_wrong"] or result["total_lost"] or result["reopened"]:
            raise Failure("clients: %s" % result)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Failure as failure:
        print("neighbours_test: %s" % failure, file=sys.stderr)
        sys.exit(1)
