#!/usr/bin/env python3
"""A link that carries nothing any more, without a word, in the middle of a move: noticed within the
stall timeout on every connection, whichever of them it is.

  stall_test.py GODWIT
"""
import json
import os
import subprocess
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
from godwit_lab import Failure, Lab, lab_id, lab_name, wait_for  # noqa: E402

MIB = 128
PORT = 7000


class Stall:
    def __init__(self, lab):
        self.lab = lab
        self.healed = []

    def in_node(self, node, *command):
        return subprocess.run(["ip", "netns", "exec", "%s-%s" % (lab_id(), node), *command],
                              stdout=subprocess.PIPE, text=True, check=True).stdout

    def swallow(self, port=None):
        """From now on nothing of n1's arrives at n2, or nothing of its connection from `port`; nobody
        is told."""
        if port:
            # Before the local table, which usually comes first.
            self.rules("add pref 100 lookup local", "del pref 0",
                       "add pref 1 ipproto tcp sport %d blackhole" % port)
            self.healed = ["del pref 1", "add pref 0 lookup local", "del pref 100"]
        else:
            self.in_node("n2", "ip", "link", "set", "up0", "down")

    def rules(self, *changes):
        for change in changes:
            self.in_node("n2", "ip", "rule", *change.split())

    def heal(self):
        self.in_node("n2", "ip", "link", "set", "up0", "up")
        healed, self.healed = self.healed, []
        self.rules(*healed)

    def begin(self, *options):
        moving = subprocess.Popen(
            [self.lab.godwit, "migrate", "served", "n2", "--json", "--compress", "none", *options],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.lab.cleanup.callback(moving.kill)
        return moving

    def stream(self):
        """(bytes, port at n1) of the connection that carries most."""
        lines = self.in_node("n1", "ss", "-Htin", "state", "established").splitlines()
        best = (0, 0)
        for head, more in zip(lines[::2], lines[1::2]):
            counted = [int(word.split(":")[1]) for word in more.split()
                       if word.startswith("bytes_acked:")]
            if counted:
                best = max(best, (counted[0], int(head.split()[2].rsplit(":", 1)[1])))
        return best

    def wait_until_it_flows(self):
        return wait_for("the move to send",
                        lambda: [each for each in [self.stream()] if each[0] > 4 << 20], 20)[0][1]

    def expect_answers(self, client, what):
        seen = client.mark()
        if seen["wrong"] or seen["lost"]:
            raise Failure("%s: %s" % (what, seen))

    def rolls_back(self, client, what, timeout, only_stream=False, options=()):
        moving = self.begin("--strategy", "precopy", "--bandwidth", "160Mbit", *options)
        port = self.wait_until_it_flows()
        cut = time.monotonic()
        self.swallow(port if only_stream else None)
        try:
            # The source's daemon answers; the destination's is told when it can be.
            out, err = moving.communicate(timeout=60)
            took = time.monotonic() - cut
        finally:
            self.heal()
        result = json.loads(out)
        print("%s: %s after %.2f s: %s" % (what, result["outcome"], took, result.get("error")),
              flush=True)
        if result["outcome"] != "rolled_back":
            raise Failure("%s: %s %s" % (what, out, err))
        # What was on its way when it was cut may have been acknowledged a moment before.
        # And the way back, on a machine that may be busy.
        if not timeout - 0.6 < took < timeout + 5:
            raise Failure("%s: noticed after %.2f s of %.2f" % (what, took, timeout))
        self.expect_answers(client, what)
        wait_for("nothing to be left at n2", self.is_clean, 60)

    def is_clean(self):
        return not any("gwp" in line for line in self.in_node("n2", "ip", "-o", "link").splitlines())

    def passes(self, client, what, seconds, options=()):
        """A link that comes back in time is no failure."""
        moving = self.begin("--strategy", "precopy", "--bandwidth", "160Mbit", *options)
        self.wait_until_it_flows()
        self.swallow()
        time.sleep(seconds)
        self.heal()
        out, err = moving.communicate(timeout=120)
        result = json.loads(out)
        print("%s: %s" % (what, result["outcome"]), flush=True)
        if result["outcome"] != "moved":
            raise Failure("%s: %s %s" % (what, out, err))
        self.expect_answers(client, what)
        self.lab.move("served", "n1", timeout=120)
        self.expect_answers(client, what)

    def pauses(self, client):
        """In post-copy the service runs at n2 already, and waits there for what is missing."""
        moving = self.begin("--strategy", "postcopy", "--bandwidth", "80Mbit")
        self.wait_until_it_flows()
        shown = json.loads(self.lab("lab", "exec", "n2", "--", self.lab.godwit, "inspect", "served",
                                    "--json").stdout)
        if not shown.get("pages_missing"):
            raise Failure("nothing is missing: %s" % shown)
        log = "/run/godwit/%s/n2/node.log" % lab_name()
        before = os.path.getsize(log)
        cut = time.monotonic()
        self.swallow()

        def noticed():
            with open(log) as text:
                text.seek(before)
                return "pages of served: " in text.read()
        try:
            wait_for("n2 to notice", noticed, 20)
            took = time.monotonic() - cut
        finally:
            self.heal()
        print("memory that follows: noticed after %.2f s" % took, flush=True)
        moving.communicate(timeout=120)
        wait_for("the last page", lambda: not self.lab.inspect("served").get("pages_missing"), 60)
        self.expect_answers(client, "memory that follows")


def main():
    with Lab(sys.argv[1]) as lab:
        stall = Stall(lab)
        lab.cleanup.callback(stall.heal)
        address = lab.start("served", os.path.join(lab.build, "memory_server"), "--port", PORT, "--mib",
                            MIB, "--dirty-pages-per-s", 500, port=PORT)
        client = lab.pulse("echo", address, PORT, interval_us=2000)
        refused = lab("migrate", "served", "n2", "--stall-timeout", "10ms", check=False)
        if refused.returncode == 0 or "--stall-timeout 10ms" not in refused.stderr:
            raise Failure("10 ms: %s" % refused)
        stall.rolls_back(client, "everything, by default", 2.0)
        stall.rolls_back(client, "everything, --stall-timeout 5s", 5.0,
                         options=("--stall-timeout", "5s"))
        stall.rolls_back(client, "the stream alone", 2.0, only_stream=True)
        stall.passes(client, "0.8 s, which is shorter", 0.8)
        stall.pauses(client)
        client.finish()
    print("passed")


if __name__ == "__main__":
    main()
