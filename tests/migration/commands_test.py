#!/usr/bin/env python3
"""Commands and their options as a user gives them, before and after a move.

  commands_test.py build/godwit [--only TEXT]
"""
import argparse
import json
import os
import pty
import select
import signal
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
import godwit_lab  # noqa: E402
from godwit_lab import Failure, wait_for  # noqa: E402

# A shell that only waits, and is there for signals; its trap for the end takes along what it waits for.
FOREVER = "sleep 1000 & while :; do wait; done"
END = "kill $!; exit"
COUNT = ("import time\ni = 0\nwhile True:\n    i += 1\n    {}\n    time.sleep(0.02)\n")
COUNT_LINES = COUNT.format("print('line', i, flush=True)")
COUNT_IN_FILE = COUNT.format("open('/tmp/now', 'w').write(str(i))")


def expect(what, is_so):
    if not is_so:
        raise Failure(what)


def expect_same(what, seen, wanted):
    expect("%s: %r, not %r" % (what, seen, wanted), seen == wanted)


class Terminal:
    """A command on a terminal of its own."""

    def __init__(self, *command):
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.execv(command[0], command)
        self.text = ""

    def say(self, text):
        os.write(self.fd, text.encode())

    def read_until(self, word, timeout=20):
        end = time.monotonic() + timeout
        while word not in self.text:
            if not select.select([self.fd], [], [], max(0, end - time.monotonic()))[0]:
                raise Failure("the terminal shows no %r: %r" % (word, self.text))
            try:
                more = os.read(self.fd, 65536)
            except OSError:  # the other side is closed
                more = b""
            if not more:
                raise Failure("the terminal ended without %r: %r" % (word, self.text))
            self.text += more.decode(errors="replace")

    def exit_code(self, timeout=20):
        end = time.monotonic() + timeout
        while True:
            done, status = os.waitpid(self.pid, os.WNOHANG)
            if done:
                os.close(self.fd)
                return os.waitstatus_to_exitcode(status)
            if time.monotonic() > end:
                os.kill(self.pid, signal.SIGKILL)
                raise Failure("the command on the terminal does not end: %r" % self.text)
            if select.select([self.fd], [], [], 0.05)[0]:
                try:
                    self.text += os.read(self.fd, 65536).decode(errors="replace")
                except OSError:
                    time.sleep(0.02)


def states(lab):
    return {each["name"]: each["state"] for each in json.loads(lab("ps", "-a", "--json").stdout)}


def in_the_foreground(lab, folder):
    del folder
    done = lab("run", "--name", "f", "--rm", "--", "sh", "-c", "echo out; echo err >&2; exit 7",
               check=False)
    expect_same("streams and exit code", (done.stdout, done.stderr, done.returncode),
                ("out\n", "err\n", 7))
    done = subprocess.run([lab.godwit, "run", "--name", "f", "--node", "n2", "--rm", "-i", "--", "sort"],
                          input="b\na\n", stdout=subprocess.PIPE, text=True, timeout=30)
    expect_same("standard input", (done.stdout, done.returncode), ("a\nb\n", 0))
    for command, code, word in (("/no/such", 127, "No such file"), ("/etc/passwd", 126, "denied")):
        done = lab("run", "--name", "f", "--rm", "--", command, check=False)
        expect_same(command, done.returncode, code)
        expect("%s: %s" % (command, done.stderr), word in done.stderr)
    expect_same("what is left", states(lab), {})
    done = lab("run", "--name", "no/name", "--", "true", check=False)
    expect_same("a wrong name", done.returncode, 125)
    # A signal that the command gets is the program's.
    process = subprocess.Popen([lab.godwit, "run", "--name", "f", "--", "sh", "-c",
                                "trap 'echo got; %s 4' TERM; echo ready; " % END + FOREVER],
                               stdout=subprocess.PIPE, text=True)
    expect_same("it runs", process.stdout.readline(), "ready\n")
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=20)
    expect_same("a signal", (out, process.returncode), ("got\n", 4))
    expect_same("without --rm", states(lab), {"f": "exited"})
    lab("rm", "f")


def settings(lab, folder):
    """What `run` was told is so at its first place and at the next."""
    shared = os.path.join(folder, "shared")
    os.mkdir(shared)
    os.chmod(folder, 0o755)
    with open(os.path.join(shared, "file"), "w") as text:
        text.write("shared\n")
    lab("run", "--name", "set", "--node", "n1", "-d", "--env", "ONE=1 and more", "-e", "TWO=", "--workdir",
        "/usr/lib", "--user", "nobody", "--hostname", "elsewhere", "--ip", "10.77.0.222", "--bind",
        shared + ":/srv", "--", "sh", "-c", FOREVER)

    def look():
        script = ("id -un; pwd; echo \"$ONE,${TWO-unset}\"; hostname; cat /srv/file; "
                  "tr '\\0' '\\n' < /proc/2/environ | grep ONE; readlink /proc/2/cwd; "
                  "ip -o -4 addr show eth0 | awk '{print $4}'")
        return lab("exec", "set", "--", "sh", "-c", script).stdout.splitlines()
    wanted = ["nobody", "/usr/lib", "1 and more,", "elsewhere", "shared", "ONE=1 and more", "/usr/lib",
              "10.77.0.222/16"]
    expect_same("at n1", look(), wanted)
    lab.move("set", "n2")
    expect_same("at n2", look(), wanted)
    done = lab("exec", "-e", "THREE=3", "-w", "/tmp", "-u", "root", "set", "--", "sh", "-c",
               "echo $THREE; pwd; id -un; exit 9", check=False)
    expect_same("exec", (done.stdout.split(), done.returncode), (["3", "/tmp", "root"], 9))
    done = lab("exec", "set", "--", "nosuch", check=False)
    expect_same("exec of nothing", done.returncode, 127)
    done = subprocess.run([lab.godwit, "exec", "-i", "set", "--", "wc", "-c"], input="12345", text=True,
                          stdout=subprocess.PIPE, timeout=30)
    expect_same("exec -i", done.stdout.strip(), "5")
    lab("rm", "-f", "set")
    for options, word in ((("--user", "nosuchuser"), "nosuchuser"), (("--ip", "192.0.2.1"), "192.0.2.1"),
                          (("--workdir", "relative"), "relative"), (("--env", "noequals"), "noequals"),
                          (("--bind", "/no/such"), "/no/such"), (("--rootfs", "/no/such"), "/no/such"),
                          (("--node", "nowhere"), "nowhere")):
        done = lab("run", "--name", "bad", "-d", *options, "--", "true", check=False)
        expect("%s: exit code %d, %s" % (options, done.returncode, done.stderr),
               done.returncode != 0 and word in done.stderr)
    expect_same("what is left", states(lab), {})


def terminals(lab, folder):
    del folder
    session = Terminal(lab.godwit, "run", "--name", "t", "--node", "n1", "-it", "--", "sh")
    session.say("stty -echo; tty; echo ready\n")
    session.read_until("/dev/pts/")
    session.read_until("ready")
    # Keys that are signals.
    session.say("trap 'echo interrupted' INT; sleep 1000\n")
    wait_for("sleep", lambda: "sleep 1000" in lab("exec", "t", "--", "ps", "-e", "-o", "args").stdout)
    session.say("\x03")
    session.read_until("interrupted")
    # Whoever types goes on typing.
    lab.move("t", "n2")
    session.say("echo moved; exit 6\n")
    session.read_until("moved")
    expect_same("its end", session.exit_code(), 6)
    lab("rm", "t")
    lab("run", "--name", "t", "--node", "n2", "-d", "--", "sleep", "1000")
    session = Terminal(lab.godwit, "exec", "-it", "t", "--", "sh", "-c",
                       "stty -echo; tty && echo here; read x; echo got $x; exit 3")
    session.read_until("here")
    # The service stays what it is while somebody looks in, and moves when they have gone.
    session.say("word\n")
    session.read_until("got word")
    expect_same("exec -it", session.exit_code(), 3)
    lab.move("t", "n1")
    lab("rm", "-f", "t")


def its_output(lab, folder):
    del folder
    lab("run", "--name", "out", "--node", "n1", "-d", "--", "/usr/bin/python3", "-c", COUNT_LINES)
    follow = subprocess.Popen([lab.godwit, "logs", "-f", "out"], stdout=subprocess.PIPE, text=True)
    lab.cleanup.callback(follow.kill)
    for node in ("n2", "n1"):
        lab.move("out", node)
    wait_for("lines", lambda: len(lab("logs", "out").stdout.splitlines()) > 50)
    last = lab("logs", "-n", "3", "out").stdout.splitlines()
    expect("the last three: %s" % last, len(last) == 3 and last[0].startswith("line "))
    lab("stop", "out")
    out, _ = follow.communicate(timeout=30)
    lines = out.splitlines()
    expect_same("followed", lines, ["line %d" % (i + 1) for i in range(len(lines))])
    expect_same("all of it", lab("logs", "out").stdout.splitlines(), lines)
    lab("rm", "out")


def ends(lab, folder):
    del folder
    script = "trap 'echo hup' HUP; trap '%s 5' TERM; echo ready; " % END + FOREVER
    lab("run", "--name", "one", "--node", "n2", "-d", "--", "sh", "-c", script)
    wait_for("it to be ready", lambda: "ready" in lab("logs", "one").stdout)
    lab.move("one", "n1")
    lab("signal", "one", "HUP")
    wait_for("the signal", lambda: "hup" in lab("logs", "one").stdout)
    done = lab("rm", "one", check=False)
    expect("rm of one that runs: %s" % done.stderr, done.returncode != 0 and "stop it" in done.stderr)
    waiting = subprocess.Popen([lab.godwit, "wait", "one"], stdout=subprocess.PIPE, text=True)
    lab("stop", "one")
    expect_same("wait", waiting.communicate(timeout=20)[0].strip(), "5")
    expect_same("its end", lab.inspect("one")["exit_code"], 5)
    lab("rm", "one")
    # One that does not listen is killed.
    lab("run", "--name", "deaf", "-d", "--", "sh", "-c", "trap '' TERM; echo ready; " + FOREVER)
    wait_for("it to be ready", lambda: "ready" in lab("logs", "deaf").stdout)
    lab("stop", "-t", "300ms", "deaf")
    expect_same("killed", lab.inspect("deaf")["exit_code"], 137)
    lab("rm", "deaf")
    # A program that becomes a daemon: the service is what is left of it.
    lab("run", "--name", "daemon", "--node", "n1", "-d", "--", "sh", "-c",
        "setsid /usr/bin/python3 -c \"$0\" > /tmp/out 2>&1 < /dev/null & exit 0", COUNT_IN_FILE)

    def now():
        text = lab("exec", "daemon", "--", "cat", "/tmp/now", check=False).stdout.strip()
        return int(text) if text.isdigit() else 0
    wait_for("the daemon", now)
    for node in ("n2", "n1"):
        lab.move("daemon", node)
        before = now()
        wait_for("the daemon at %s" % node, lambda before=before: now() > before)
        expect_same("state at " + node, lab.inspect("daemon")["state"], "running")
    lab("rm", "-f", "daemon")


def what_is_shown(lab, folder):
    """Fields that scripts rely on."""
    del folder
    lab("run", "--name", "show", "--node", "n1", "-d", "--", "sleep", "1000")

    def shown_at(node):
        shown = lab.inspect("show")
        expect_same("name, node and state", (shown["name"], shown["node"], shown["state"]),
                    ("show", node, "running"))
        with open("/proc/%d/cmdline" % shown["pid"]) as text:
            expect_same("its process", text.read().split("\0")[:2], ["sleep", "1000"])
        return shown

    before = shown_at("n1")
    moved = lab.move("show", "n2")
    after = shown_at("n2")
    expect("pids", before["pid"] != after["pid"])
    wait_for("the first one's end", lambda: not os.path.exists("/proc/%d" % before["pid"]))
    expect_same("address", after["address"], before["address"])
    last = after["last_migration"]
    for field in ("strategy", "rounds", "freeze_ns", "total_ns", "bytes_wire", "outcome"):
        expect_same(field, last[field], moved[field])
    expect("figures: %s" % moved, moved["freeze_ns"] > 0 and moved["bytes_wire"] > 0 and
           moved["total_ns"] > moved["freeze_ns"] and moved["outcome"] == "moved")
    for words in (("ps",), ("inspect", "show"), ("nodes",)):
        expect("%s" % (words,), "n2" in lab(*words).stdout)
    done = lab("migrate", "show", "n2", check=False)
    expect("to where it is: %s" % done.stderr, done.returncode != 0 and "already" in done.stderr)
    for words in (("inspect", "nobody"), ("migrate", "nobody", "n2"), ("migrate", "show", "nowhere"),
                  ("logs", "nobody"), ("exec", "nobody", "--", "true"), ("stop", "nobody"),
                  ("checkpoint", "nobody", "-o", "/tmp/x"), ("restore", "/no/such/file")):
        done = lab(*words, check=False)
        expect("%s: %d %s" % (words, done.returncode, done.stderr), done.returncode not in (0, 4) and
               words[-1 if words[0] in ("migrate", "restore") and "show" in words or
                     words[0] == "restore" else 1] in done.stdout + done.stderr)
    lab("rm", "-f", "show")


def another_name(lab, folder):
    """A file becomes a service of another name, beside the one that it was made of or after it."""
    file = os.path.join(folder, "image.gw")
    lab("run", "--name", "first", "--node", "n1", "-d", "--", "/usr/bin/python3", "-c", COUNT_IN_FILE)
    wait_for("it to count", lambda: lab("exec", "first", "--", "cat", "/tmp/now",
                                        check=False).stdout.strip() not in ("", "0"))
    lab("checkpoint", "first", "-o", file, "--leave-running")
    address = lab.inspect("first")["address"]
    # Both would have the address.
    done = lab("restore", file, "--name", "second", "--node", "n2", check=False)
    expect("beside it: %d %s" % (done.returncode, done.stdout + done.stderr),
           done.returncode != 0 and address in done.stdout + done.stderr)
    expect_same("what is there", states(lab), {"first": "running"})
    lab("rm", "-f", "first")
    lab("restore", file, "--name", "second", "--node", "n2")
    shown = lab.inspect("second")
    expect_same("restored", (shown["node"], shown["state"], shown["address"]), ("n2", "running", address))
    before = lab("exec", "second", "--", "cat", "/tmp/now").stdout
    wait_for("it to go on", lambda: lab("exec", "second", "--", "cat", "/tmp/now").stdout != before)
    lab.move("second", "n1")
    lab("rm", "-f", "second")


CASES = [("foreground", in_the_foreground), ("settings", settings), ("terminals", terminals),
         ("output", its_output), ("ends", ends), ("shown", what_is_shown),
         ("another name", another_name)]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("godwit")
    parser.add_argument("--only", default="")
    options = parser.parse_args()
    with godwit_lab.Lab(options.godwit) as lab:
        for name, case in CASES:
            if options.only not in name:
                continue
            begin = time.monotonic()
            try:
                with tempfile.TemporaryDirectory(prefix="godwit-test-") as folder:
                    case(lab, folder)
            except Failure as failure:
                raise Failure("%s: %s" % (name, failure))
            print("%-16s ok  %.1f s" % (name, time.monotonic() - begin), flush=True)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Failure as failure:
        print("commands_test: %s" % failure, file=sys.stderr)
        sys.exit(1)
