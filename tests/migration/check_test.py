#!/usr/bin/env python3
"""godwit check: what a service and any process hold, and what of that could not move.

  check_test.py build/godwit
"""
import json
import os
import subprocess
import sys
import tempfile

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
import godwit_lab  # noqa: E402
from godwit_lab import Failure  # noqa: E402

# A program that is no service: a child, a thread, a pipe between them, and (by its argument) a lease.
PROGRAM = """
import fcntl, os, signal, sys, threading
read, write = os.pipe()
if os.fork() == 0:
    signal.pause()
threading.Thread(target=signal.pause, daemon=True).start()
held = open(sys.argv[1])
if len(sys.argv) > 2:
    signal.signal(signal.SIGIO, signal.SIG_IGN)
    fcntl.fcntl(held, fcntl.F_SETLEASE, fcntl.F_RDLCK)
print("ready", flush=True)
signal.pause()
"""


def check(godwit, what, code):
    done = subprocess.run([godwit, "check", str(what), "--json"], stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, text=True, timeout=30)
    if done.returncode != code:
        raise Failure("check %s: exit code %d: %s%s" %
                      (what, done.returncode, done.stdout, done.stderr))
    return json.loads(done.stdout) if done.stdout else done.stderr


def expect(what, condition, seen):
    if not condition:
        raise Failure("%s: %s" % (what, json.dumps(seen)))


def processes(godwit):
    for more, code in (([], 0), (["lease"], 3)):
        program = subprocess.Popen([sys.executable, "-c", PROGRAM, __file__, *more], text=True,
                                   stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                   start_new_session=True)
        try:
            program.stdout.readline()
            seen = check(godwit, program.pid, code)
            expect("tasks", seen["processes"] == 2 and seen["threads"] == 3, seen)
            expect("descriptors", seen["descriptors"] >= 10, seen)
            expect("memory", seen["memory_bytes"] > 1 << 20, seen)
            codes = [each["code"] for each in seen["refusals"]]
            expect("refusals", ("fd.lease" in codes) if more else not codes, seen)
            with open("/proc/%d/status" % program.pid) as status:
                expect("nobody traces it", "TracerPid:\t0\n" in status.read(), seen)
        finally:
            os.killpg(program.pid, 9)
            program.wait(10)
    expect("nobody", "there is no process" in check(godwit, program.pid, 1), "")
    expect("no pid", "no process id" in check(godwit, "0", 2), "")


def main():
    with godwit_lab.Lab(sys.argv[1]) as lab:
        processes(lab.godwit)
        lab.start("svc", os.path.join(lab.build, "memory_server"), "--port", "7000", "--mib", "8",
                  port=7000)
        seen = check(lab.godwit, "svc", 0)
        expect("a service", seen["outcome"] == "movable" and seen["processes"] == 1, seen)
        # By its pid it is the same; by its name from another node as well.
        again = check(lab.godwit, lab.inspect("svc")["pid"], 0)
        expect("the same", again["descriptors"] == seen["descriptors"], [seen, again])
        shared = lab.cleanup.enter_context(tempfile.TemporaryDirectory(prefix="godwit-test-"))
        lab("run", "--name", "locks", "--node", "n2", "-d", "--bind", shared, "--", "/bin/sh", "-c",
            "exec 9>>%s/file; flock 9; echo > /tmp/locked; exec sleep 1000" % shared)
        godwit_lab.wait_for("its lock", lambda: lab(
            "exec", "locks", "--", "test", "-e", "/tmp/locked", check=False).returncode == 0)
        seen = check(lab.godwit, "locks", 3)
        expect("a service elsewhere", [each["code"] for each in seen["refusals"]] == ["fd.lock"],
               seen)
        lab("rm", "-f", "locks")
        expect("no such service", "nobody" in check(lab.godwit, "nobody", 1), "")
    print("services and processes: right")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Failure as failure:
        print("check_test: %s" % failure, file=sys.stderr)
        sys.exit(1)
