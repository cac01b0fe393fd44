#!/usr/bin/env python3
"""A subject with many kinds of kernel state checks itself unmoved, then after each of several moves.
What the service's own /proc shows of all its processes is the same before and after each move.

  state_test.py build/godwit
"""
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
import godwit_lab  # noqa: E402
from godwit_lab import Failure  # noqa: E402
import process_view  # noqa: E402

ASK = """
import socket, sys
asked = socket.create_connection((sys.argv[1], 7100), 10)
asked.settimeout(50)
asked.sendall(b"check\\n")
text = b""
while not (text.startswith(b"OK") or text.endswith(b"END\\n")):
    more = asked.recv(65536)
    if not more:
        break
    text += more
print(text.decode(), end="")
"""


# What is known to come out differently; anything else fails, and so does one of these that has
# become right and still stands here.
KNOWN = {
    "unix sockets: SO_PEERCRED is 0, not 2",
}


def ask(lab, address, when, known=frozenset()):
    done = lab.client("python3", "-c", ASK, address, check=False, timeout=70)
    print("%s: %s" % (when, done.stdout.strip()), flush=True)
    lines = done.stdout.splitlines()
    if not lines or not (lines[-1] == "END" or lines[-1].startswith("OK ")):
        return ["%s: no answer: %s%s" % (when, done.stdout, done.stderr)]
    found = {line for line in lines if line != "END" and not line.startswith("OK ")}
    return (["%s: %s" % (when, line) for line in sorted(found - known)] +
            ["%s: is right now, take it out of KNOWN: %s" % (when, line)
             for line in sorted(known - found)])


def main():
    with godwit_lab.Lab(sys.argv[1]) as lab:
        address = lab.start("state", os.path.join(lab.build, "state_check"), "7100", port=7100)
        wrong = ask(lab, address, "unmoved")
        view = process_view.details(lab, "state")
        print("unmoved: %d values in /proc" % len(view))
        wrong += ["unmoved, /proc: %s" % line for line in
                  process_view.differences(view, process_view.details(lab, "state"))]
        for node, strategy, options in (("n2", "precopy", ["--verify"]), ("n1", "cold", []),
                                        ("n2", "precopy", []), ("n1", "cold", ["--verify"])):
            view = process_view.details(lab, "state")
            lab.move("state", node, "--strategy", strategy, *options)
            wrong += ["moved to %s, /proc: %s" % (node, line) for line in
                      process_view.differences(view, process_view.details(lab, "state"))]
            wrong += ask(lab, address, "moved to %s, %s" % (node, strategy), KNOWN)
        if wrong:
            raise Failure("\n".join(wrong))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Failure as failure:
        print("state_test: %s" % failure, file=sys.stderr)
        sys.exit(1)
