#!/usr/bin/env python3
"""Programs on terminals move: tmux with a shell in it, script(1), a service that has a terminal
of its own (`run -it`), whose user goes on typing, and sshd, somebody being logged in.

  terminals_test.py build/godwit
"""
import contextlib
import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
import godwit_lab  # noqa: E402
from godwit_lab import Failure, wait_for  # noqa: E402

MOVES = (("n2", ["--strategy", "precopy"]), ("n1", ["--strategy", "cold"]),
         ("n2", ["--strategy", "postcopy"]))


def expect(what, is_so):
    if not is_so:
        raise Failure(what)


def tmux(lab):
    """A server with a shell: what was on its screen is there, and what is typed is done."""
    lab("run", "--name", "tmux", "--node", "n1", "-d", "--", "/bin/sh", "-c",
        "tmux -f /dev/null new-session -d -s work -x 90 -y 20 /bin/bash --norc && exec sleep 100000")

    def ask(*command):
        return lab("exec", "tmux", "--", "tmux", *command, check=False).stdout

    def type_line(text):
        ask("send-keys", "-t", "work", text, "Enter")

    def shows(text):
        wait_for("tmux to show %r" % text, lambda: text in ask("capture-pane", "-p", "-t", "work"))

    wait_for("tmux to be there", lambda: "work" in ask("list-sessions"))
    type_line("PS1='> '; stty size; n=0")
    shows("20 90")
    for moved, (node, options) in enumerate(MOVES, 1):
        # Half a line, and a job that is stopped.
        ask("send-keys", "-t", "work", "sleep 1000", "Enter")
        wait_for("the job to begin", lambda: "sleep" in ask(
            "display-message", "-p", "-t", "work", "#{pane_current_command}"))
        ask("send-keys", "-t", "work", "C-z")
        shows("Stopped")
        ask("send-keys", "-t", "work", "echo n=$((n+=%d" % moved)
        lab.move("tmux", node, *options)
        ask("send-keys", "-t", "work", "))", "Enter")
        shows("n=%d" % (moved * (moved + 1) // 2))
        type_line("kill %%; fg 2>&1 | cat; tty; clear")
        wait_for("the screen to be clear",
                 lambda: ask("capture-pane", "-p", "-t", "work").strip() == ">")
    type_line("tty")
    shows("/dev/pts/")
    # Another client's terminal, which ends before the next move.
    lab("rm", "-f", "tmux")
    print("tmux: a shell with a half-typed line and a stopped job, moved %d times" % len(MOVES),
          flush=True)


def script(lab):
    """A program on the slave side whose output script(1) reads from the master and writes down."""
    lab("run", "--name", "script", "--node", "n1", "-d", "--", "script", "-q", "-f", "-c",
        "n=0; while sleep 0.01; do n=$((n+1)); echo line $n; done", "/tmp/typescript")

    def lines():
        text = lab("exec", "script", "--", "cat", "/tmp/typescript", check=False).stdout
        return [line for line in text.splitlines() if line.startswith("line ")]

    wait_for("script to write", lambda: len(lines()) > 20)
    for node, options in MOVES:
        lab.move("script", node, *options)
        have = len(lines())
        wait_for("script to go on", lambda: len(lines()) > have + 20)
    numbers = [int(line.split()[1]) for line in lines()[:-1]]
    expect("script lost or repeated lines", numbers == list(range(1, len(numbers) + 1)))
    lab("rm", "-f", "script")
    print("script: %d lines, none lost" % len(numbers), flush=True)


class User:
    """Somebody at a terminal who runs a command."""

    def __init__(self, *command):
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.execv(command[0], command)
        self.size(30, 100)
        self.seen = ""
        self.all = ""

    def size(self, rows, columns):
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, text):
        os.write(self.fd, text.encode())

    def take(self, timeout):
        ready, _, _ = select.select([self.fd], [], [], timeout)
        if not ready:
            return False
        try:
            more = os.read(self.fd, 65536)
        except OSError:
            return False
        text = more.decode(errors="replace")
        self.seen += text
        self.all += text
        return bool(more)

    def sees(self, text, timeout=20):
        end = time.monotonic() + timeout
        while text not in self.seen:
            left = end - time.monotonic()
            if left <= 0 or (not self.take(left) and time.monotonic() < end and not self.alive()):
                raise Failure("the user does not see %r but %r" % (text, self.seen[-600:]))
        self.seen = self.seen[self.seen.index(text) + len(text):]

    def alive(self):
        return os.waitpid(self.pid, os.WNOHANG) == (0, 0)

    def end(self):
        """The exit code; at once."""
        limit = time.monotonic() + 20
        while time.monotonic() < limit:
            self.take(0.1)
            done, status = os.waitpid(self.pid, os.WNOHANG)
            if done:
                self.pid = 0
                return os.waitstatus_to_exitcode(status)
        raise Failure("the command does not end: %r" % self.seen[-600:])

    def close(self):
        if self.pid:
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                os.kill(self.pid, signal.SIGKILL)
                os.waitpid(self.pid, 0)
        os.close(self.fd)


def interactive(lab):
    """`godwit run -it`: the user's terminal goes on over the moves."""
    user = User(lab.godwit, "run", "--name", "shell", "--node", "n1", "-it", "--", "/bin/bash", "--norc")
    lab.cleanup.callback(user.close)
    user.sees("# ")
    user.type("PS1='now> '; cd /tmp; n=1; stty size\r")
    user.sees("30 100")
    user.sees("now> ")
    for moved, (node, options) in enumerate(MOVES, 1):
        user.type("echo half-")
        user.sees("half-")
        lab.move("shell", node, *options)
        user.type("typed $((n+=1))\r")
        user.sees("half-typed %d" % (moved + 1))
        user.sees("now> ")
        user.size(30 + moved, 100)
        wait_for("the new size", lambda: "%d 100" % (30 + moved) in lab(
            "exec", "shell", "--", "stty", "-F", "/dev/pts/0", "size", check=False).stdout)
        # Job control.
        user.type("sleep 1000\r")
        user.sees("sleep 1000")
        wait_for("the job", lambda: lab("exec", "shell", "--", "pgrep", "-x", "sleep",
                                        check=False).returncode == 0)
        user.type("\x1a")
        user.sees("Stopped")
        user.sees("now> ")
        user.type("kill -9 %1; sleep 0.3; echo it is $((6*7))\r")
        user.sees("it is 42")
        user.sees("now> ")
    user.type("exit 7\r")
    expect("the exit code is not 7", user.end() == 7)
    lab("rm", "-f", "shell")
    print("run -it: typed on over %d moves" % len(MOVES), flush=True)


SSHD = """
Port 2222
HostKey {folder}/host
AuthorizedKeysFile {folder}/user.pub
PidFile none
UsePAM no
UseDNS no
StrictModes no
LoginGraceTime 300
"""
# Begins to log in (RFC 4253), and goes on when a line comes. The child that sshd has for it is in a
# sandbox: seccomp, no more descriptors, chroot. The answer is signed by another process of sshd's.
STRANGER = """
import os, socket, struct, sys
peer = socket.create_connection((sys.argv[1], 2222), 20)
answers = peer.makefile("rb")
def text(value):
    return struct.pack(">I", len(value)) + value
def send(payload):
    padding = 8 - (len(payload) + 5) % 8 + 8
    peer.sendall(struct.pack(">IB", len(payload) + padding + 1, padding) + payload + bytes(padding))
def expect(message):
    length, = struct.unpack(">I", answers.read(4))
    packet = answers.read(length)
    if packet[1] != message:
        sys.exit("message %d: %r" % (packet[1], packet))
peer.sendall(b"SSH-2.0-Stranger_1\\r\\n")
answers.readline()
expect(20)  # SSH_MSG_KEXINIT
print("begun", flush=True)
sys.stdin.readline()
send(bytes([20]) + os.urandom(16) + b"".join(map(text, (
    b"curve25519-sha256", b"ssh-ed25519", b"aes128-ctr", b"aes128-ctr", b"hmac-sha2-256",
    b"hmac-sha2-256", b"none", b"none", b"", b""))) + bytes(5))
send(bytes([30]) + text(os.urandom(32)))  # SSH_MSG_KEX_ECDH_INIT
expect(31)
print("answered", flush=True)
"""


def sshd(lab):
    """Its user's shell goes on, line by line; so does the login that somebody else has begun."""
    with tempfile.TemporaryDirectory(prefix="godwit-test-") as folder:
        os.chmod(folder, 0o755)
        for key in ("host", "user"):
            godwit_lab.run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f",
                           os.path.join(folder, key))
        with open(os.path.join(folder, "config"), "w") as config:
            config.write(SSHD.format(folder=folder))
        address = lab.start("sshd", "/bin/sh", "-c", "mkdir -p /run/sshd; "
                            "usermod -p '*' postgres; exec /usr/sbin/sshd -D -e -f %s/config"
                            % folder, port=2222)
        # No root: then sshd has a monitor, and a child that is the user's. (One whose password is
        # "!" may not log in.)
        user = User(*lab.client_command(
            "ssh", "-F", "none", "-tt", "-p", "2222", "-i", os.path.join(folder, "user"), "-o",
            "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "postgres@" + address,
            "exec /bin/bash --norc"))
        lab.cleanup.callback(user.close)
        user.sees("$ ")
        user.type("PS1='now> '; n=0; stty size\r")
        user.sees("30 100")
        user.sees("now> ")
        for node, options in MOVES:
            stranger = subprocess.Popen(lab.client_command("python3", "-c", STRANGER, address),
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            lab.cleanup.callback(stranger.kill)
            expect("no login begins", stranger.stdout.readline() == "begun\n")
            wait_for("a sandbox", lambda: any("2" in line.split()[1:] for line in lab(
                "exec", "sshd", "--", "sh", "-c", "grep -h Seccomp: /proc/[0-9]*/status",
                check=False).stdout.splitlines()))
            stop = "/tmp/stop-%s-%d" % (node, len(user.all))
            user.type("until test -e %s; do echo line $((n+=1)) of it; sleep 0.01; done\r" % stop)
            for _ in range(20):
                user.sees("of it\r\n")
            lab.move("sshd", node, *options)
            for _ in range(20):
                user.sees("of it\r\n")
            lab("exec", "sshd", "--", "touch", stop)
            user.sees("now> ")
            stranger.stdin.write("\n")
            stranger.stdin.flush()
            expect("the sandboxed login is lost", stranger.stdout.readline() == "answered\n")
            stranger.wait(20)
        user.type("exit 7\r")
        expect("the exit code of ssh is not 7", user.end() == 7)
        lab("rm", "-f", "sshd")
    numbers = [int(number) for number in re.findall(r"line (\d+) of it", user.all)]
    expect("the shell lost or repeated lines: %s" % numbers,
           numbers == list(range(1, len(numbers) + 1)))
    print("sshd: %d lines of a session, none lost, and %d logins that had begun" % (
        len(numbers), len(MOVES)), flush=True)


def main():
    only = sys.argv[2:]
    with godwit_lab.Lab(sys.argv[1]) as lab:
        for case in (tmux, script, interactive, sshd):
            if not only or case.__name__ in only:
                case(lab)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Failure as failure:
        print("terminals_test: %s" % failure, file=sys.stderr)
        sys.exit(1)
