#!/usr/bin/env python3
"""`godwit node --bandwidth`: what a node's migrations send together stays below it, they get equal
shares of it, what one does not use is the others', and the freeze is not limited.

  bandwidth_test.py GODWIT
"""
import json
import os
import subprocess
import sys
import threading
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
from godwit_lab import Failure, Lab, lab_id, wait_for  # noqa: E402

LIMIT = 24 << 20  # bytes a second
PORT = 7000


class Sent:
    """Bytes that mover connections of n1 have carried, by the kernel's own count: one source port a
    connection, and of each migration the stream is the largest."""

    def __init__(self):
        self.samples = []
        self.ending = threading.Event()
        self.thread = threading.Thread(target=self.watch, daemon=True)
        self.thread.start()

    def watch(self):
        while not self.ending.wait(0.1):
            text = subprocess.run(
                ["ip", "netns", "exec", "%s-n1" % lab_id(), "ss", "-Htin", "state", "established"],
                stdout=subprocess.PIPE, text=True, check=False).stdout.splitlines()
            sent = {}
            for head, more in zip(text[::2], text[1::2]):
                counted = [int(word.split(":")[1]) for word in more.split()
                           if word.startswith("bytes_acked:")]
                if counted:
                    sent[head.split()[2]] = counted[0]
            self.samples.append((time.monotonic(), sent))

    def finish(self):
        self.ending.set()
        self.thread.join()
        return self.samples


def rates(samples, both):
    """Bytes a second of each connection that carries much, while `both` of them do; None: they were
    not seen together for long enough, on a machine that had no time for them or for looking."""
    large = {port for _, sent in samples for port, count in sent.items() if count > 4 << 20}
    together = [(at, sent) for at, sent in samples
                if sum(1 for port in large if 2 << 20 < sent.get(port, 0)) >= both]
    if len(together) < 10:
        print("they were not under way together: %d samples" % len(together), flush=True)
        return None
    # Without their ends.
    together = together[1:-3]
    first, last = together[0], together[-1]
    return sorted((last[1][port] - first[1][port]) / (last[0] - first[0])
                  for port in large if port in first[1] and port in last[1])


def serve(lab, name, mib, dirty=0):
    lab.start(name, os.path.join(lab.build, "memory_server"), "--port", PORT, "--mib", mib,
              "--dirty-pages-per-s", dirty, port=PORT)


def move_both(lab, *moves):
    sent = Sent()
    moving = [subprocess.Popen([lab.godwit, "migrate", name, "n2", "--json", "--compress", "none",
                                "--strategy", strategy, *options], stdout=subprocess.PIPE, text=True)
              for name, strategy, options in moves]
    for each in moving:
        lab.cleanup.callback(each.kill)
    results = [json.loads(each.communicate(timeout=120)[0]) for each in moving]
    for result in results:
        if result["outcome"] != "moved":
            raise Failure("%s" % result)
    samples = sent.finish()
    for name, _, _ in moves:
        wait_for("the last page of " + name,
                 lambda each=name: not lab.inspect(each).get("pages_missing"), 60)
    return results, samples


def near(what, rate, wanted):
    """More is never right; less may be a machine that has no time for them."""
    print("%s: %.1f MiB/s, wanted %.1f" % (what, rate / 2**20, wanted / 2**20), flush=True)
    if rate > 1.15 * wanted:
        raise Failure("%s: %.1f MiB/s instead of %.1f" % (what, rate / 2**20, wanted / 2**20))
    return rate > 0.85 * wanted


def equal_shares(lab):
    results, samples = move_both(lab, ("small", "precopy", ()), ("large", "precopy", ()))
    pair = rates(samples, 2)
    if pair is None:
        return [False]
    if not all(each["freeze_ns"] < 1e9 for each in results):
        raise Failure("the freeze was limited: %s" % results)
    return [near("two at once, one", pair[0], LIMIT / 2),
            near("two at once, the other", pair[-1], LIMIT / 2)]


def what_the_other_leaves(lab):
    _, samples = move_both(lab, ("small", "precopy", ("--bandwidth", "%d" % (LIMIT // 6))),
                           ("large", "postcopy", ()))
    pair = rates(samples, 2)
    if pair is None:
        return [False]
    return [near("its own limit", pair[0], LIMIT / 6),
            near("memory that follows, what the other leaves", pair[-1], LIMIT * 5 / 6)]


def main():
    with Lab(sys.argv[1], node_options=["--bandwidth", "%d" % LIMIT]) as lab:
        serve(lab, "small", 64)
        serve(lab, "large", 96)
        for shares in (equal_shares, what_the_other_leaves):
            for attempt in range(4):
                right = all(shares(lab))
                for name in ("small", "large"):
                    lab.move(name, "n1", timeout=120)
                if right:
                    break
            else:
                raise Failure("four times less than it may have")
    print("passed")


if __name__ == "__main__":
    main()
