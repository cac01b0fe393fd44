#!/usr/bin/env python3
"""Moves of a virtual machine there and back, each disturbed at random: the link is cut, a daemon or
libvirt is killed, a fault point is hit, the user changes his mind.

  tests/vm/campaign.py build/godwit [--moves N] [--seed N]

After each it runs on exactly one node, with nothing wrong in its memory or on its disk, nothing of
the move is left on the other, and where it did not move the next try does. A seed repeats the
choices; when exactly a fault meets the move the machine decides.
"""
import argparse
import random
import signal
import sys
import time

from faults_test import Breaking, Faults
from vm_lab import Failure, VmLab, expect_libvirt, wait_for

POINTS = [("node.before_mover", False), ("node.switch_vm", False), ("node.before_commit", False),
          ("node.after_commit", True), ("node.taking_down", True),
          ("node.before_post_copy", False)]
# In which a limit makes the time long in which something can happen, and without. The guest writes
# some 10 MiB/s to its disk: with less its copy would never end.
LIMITS = ("24MiB", "32MiB", "64MiB", "")
STRATEGIES = ("auto", "precopy", "cold", "hybrid", "postcopy")
# Once memory follows, the relays are a part of the machine, as its QEMUs are: then they are killed
# before that alone, at the switch.
WITHOUT_POST_COPY = ("precopy", "cold")


class Campaign(Breaking):
    def __init__(self, lab, faults, seed):
        super().__init__(lab, faults)
        self.random = random.Random(seed)
        self.counts = {}

    def faults_there_are(self):
        here, there = self.at, self.other()
        return {
            "link cut": self.cut_for_a_while,
            "source's daemon killed": lambda _: self.kill_daemon(here),
            "destination's daemon killed": lambda _: self.kill_daemon(there),
            "source's libvirt killed": lambda _: self.kill_libvirt(here),
            "destination's libvirt killed": lambda _: self.kill_libvirt(there),
            "source's relay killed": lambda _: self.kill_relay(here),
            "destination's relay killed": lambda _: self.kill_relay(there),
            "cancelled": lambda moving: moving.send_signal(signal.SIGINT),
            "at the switch: source's relay killed": lambda _: self.kill_relay(here),
            "at the switch: destination's relay killed": lambda _: self.kill_relay(there),
            "at the switch: link cut": self.cut_for_a_while,
        }

    def cut_for_a_while(self, _):
        undo = self.cut_link()
        try:
            time.sleep(self.random.choice((0.2, 1.5, 4)))
        finally:
            undo()

    def disturbed(self):
        kind = self.random.choice([*self.faults_there_are(), "point", "point"])
        at_switch = kind.startswith("at the switch")
        before_post_copy = "relay" in kind and not at_switch
        strategy = self.random.choice(WITHOUT_POST_COPY if before_post_copy else STRATEGIES)
        limit = self.random.choice(LIMITS)
        options = ["--strategy", strategy, "--stall-timeout", "1s"]
        if limit:
            options += ["--bandwidth", limit]
        delay = self.random.uniform(0, 3)
        (point, moves), action = self.random.choice(POINTS), self.random.choice(("error", "kill"))
        name = "%s at %s, %s after %.1f s" % (strategy, limit or "no limit", kind, delay)
        hit = False
        if kind == "point":
            name = "%s at %s, %s: %s" % (strategy, limit or "no limit", point, action)

        def act():
            nonlocal hit
            if kind == "point":
                self.faults.arm(point, action)
            if at_switch:
                self.faults.arm("node.switch_vm", "wait")
            moving = self.begin(*options)
            try:
                if at_switch:
                    # Rounds that do not converge never come there.
                    wait_for("the switch", lambda: self.faults.was_hit() or
                             moving.poll() is not None, 120)
                    if self.faults.was_hit():
                        self.faults_there_are()[kind](moving)
                        self.faults.go_on()
                elif kind != "point":
                    time.sleep(delay)
                    self.faults_there_are()[kind](moving)
                moving.communicate(timeout=240)
                hit = kind == "point" and self.faults.was_hit()
            finally:
                moving.kill()

        before = self.at
        self.case(name, act)
        moved = self.at != before
        # Committed by post-copy and not let run yet, it is given back.
        given_back = point == "node.after_commit" and strategy not in WITHOUT_POST_COPY
        if hit and moved != moves and not given_back:
            raise Failure("%s: it is on %s, was on %s" % (name, self.at, before))
        self.counts[kind] = self.counts.get(kind, 0) + 1
        if not moved:
            began = time.monotonic()
            self.lab.move("web", self.other())
            self.at = self.other()
            self.lab.expect_only_on("web", self.at, 40)
            print("  the next try: %.1f s" % (time.monotonic() - began), flush=True)
        return moved


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("godwit")
    parser.add_argument("--moves", type=int, default=50)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    arguments = parser.parse_args()
    expect_libvirt()
    print("seed %d" % arguments.seed, flush=True)
    faults = Faults()
    moved = 0
    try:
        with VmLab(arguments.godwit) as lab:
            campaign = Campaign(lab, faults, arguments.seed)
            for i in range(arguments.moves):
                try:
                    moved += campaign.disturbed()
                except Failure:
                    print("move %d of seed %d" % (i + 1, arguments.seed), flush=True)
                    raise
            passes = campaign.agent.check()
            wait_for("the guest works on", lambda: campaign.agent.check() > passes, 20)
    finally:
        faults.remove()
    print("%d disturbed moves, %d went through, none was lost: %s" % (
        arguments.moves, moved, campaign.counts))
    return 0


if __name__ == "__main__":
    sys.exit(main())
