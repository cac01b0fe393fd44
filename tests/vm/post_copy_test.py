#!/usr/bin/env python3
"""Virtual machines that run at the destination before all of their memory is there, and what breaks
meanwhile: afterwards each runs on exactly one node with nothing wrong in its memory.

GODWIT_FAULTS=all in the environment breaks more of the moment between the switch and the commit, which
takes a minute more (docs/decisions/0033).
"""
import os
import sys
import time

from faults_test import Breaking, Faults
from vm_lab import ECHO, Failure, VmLab, expect_libvirt, wait_for


POST_COPY = ("--strategy", "hybrid", "--bandwidth", "24MiB")


def expect(what, condition):
    if not condition:
        raise Failure("not true: %s" % what)


class PostCopy(Breaking):
    def moves(self):
        pulse = self.lab.pulse("echo", self.address, ECHO)
        for strategy, limit in (("hybrid", "24MiB"), ("postcopy", "64MiB")):
            pulse.mark()
            result = self.lab.move("web", self.other(), "--strategy", strategy,
                                   "--bandwidth", limit)
            self.at = self.other()
            mark = pulse.mark()
            print("%s: gap %.0f ms, stopped %.0f ms, pages followed for %.0f ms, total %.2f s" % (
                strategy, mark["longest_gap_us"] / 1e3, result["freeze_ns"] / 1e6,
                result["post_copy_ns"] / 1e6, result["total_ns"] / 1e9), flush=True)
            expect("no answer was wrong: %s" % mark, mark["wrong"] == mark["lost"] == 0 and
                   mark["checked"] > 0)
            expect("by post-copy: %s" % result, result["strategy"] == strategy and
                   result["post_copy_ns"] > 0)
            self.lab.expect_only_on("web", self.at)
            self.no_notes()
            passes = self.agent.check()
            wait_for("its memory is right", lambda: self.agent.check() >= passes + 2, 30)
        pulse.finish()

    def auto(self):
        """It writes more than the link carries: auto finds that out."""
        result = self.lab.move("web", self.other(), "--bandwidth", "14MiB")
        self.at = self.other()
        expect("it went by post-copy: %s" % result, result["strategy"] == "hybrid" and
               ("rounds" in result["chosen_because"] or
                "not converge" in result["chosen_because"]))
        self.lab.expect_only_on("web", self.at)
        self.agent.check()

    def in_post_copy(self):
        return self.lab.inspect("web").get("pages_at") == self.at

    def while_pages_follow(self, name, act):
        """It runs there, and a limit makes the time long until all of it does."""
        def both():
            moving = self.begin("--strategy", "postcopy", "--bandwidth", "12MiB",
                                "--stall-timeout", "1s")
            wait_for("it runs there", self.in_post_copy, 40)
            undo = act()
            if undo:
                time.sleep(3)
                undo()
            moving.communicate(timeout=90)
            wait_for("all of it is there", lambda: not self.lab.inspect("web").get("pages_at"), 90)
        self.case(name, both, True)


    def resumed(self):
        self.lab("migrate", "--resume", "web", timeout=90)
        expect("no page is missing then", not self.lab.inspect("web").get("pages_at"))
        again = self.lab("migrate", "--resume", "web", check=False)
        expect("there is nothing to wait for: %s" % again.stderr, again.returncode != 0 and
               "no memory of web is missing" in again.stderr)

    def at_switch(self, name, act):
        """When it has been stopped, before anything is committed."""
        def both():
            self.faults.arm("node.switch_vm", "wait")
            moving = self.begin(*POST_COPY)
            wait_for("the switch", self.faults.was_hit, 40)
            act()
            self.faults.go_on()
            moving.communicate(timeout=90)
        self.case(name, both, False)

    def all_gone_over(self):
        """QEMU has it all at the destination, before anybody has said that it is to run there."""
        wait_for("QEMU to be done", lambda: "completed" in self.lab.virsh(
            self.at, "qemu-monitor-command", "web", "--hmp", "info migrate").stdout, 60)


def main():
    expect_libvirt()
    everything = os.environ.get("GODWIT_FAULTS") == "all"
    faults = Faults()
    try:
        with VmLab(sys.argv[1]) as lab:
            it = PostCopy(lab, faults)
            it.moves()
            it.auto()
            for point, moves in (("node.before_post_copy", False), ("node.switch_vm", False),
                                 ("node.before_commit", False), ("node.after_commit", None)):
                for action in ("error", "kill") if everything else ("kill",):
                    it.fault(point, action, moves, POST_COPY)
            it.at_switch("source's relay killed at the switch", lambda: it.kill_relay(it.at))
            it.at_switch("all gone over, then destination's relay killed",
                         lambda: (it.all_gone_over(), it.kill_relay(it.other())))
            if everything:
                it.at_switch("destination's relay killed at the switch",
                             lambda: it.kill_relay(it.other()))
                it.at_switch("all gone over, then source's daemon killed",
                             lambda: (it.all_gone_over(), it.kill_daemon(it.at)))
            it.while_pages_follow("waited for once more", it.resumed)
            it.while_pages_follow("link cut", it.cut_link)
            it.while_pages_follow("source's daemon killed", lambda: it.kill_daemon(it.at))
            if everything:
                it.while_pages_follow("destination's daemon killed",
                                      lambda: it.kill_daemon(it.other()))
    finally:
        faults.remove()
    return 0


if __name__ == "__main__":
    sys.exit(main())
