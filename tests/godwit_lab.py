"""Driving build/godwit from tests, the demo and the benchmark.

Lab takes one of the LABS that nobody uses, brings it up, and takes it down again, and says what was
left behind: as many tests run at once. $GODWIT_LAB=x makes another one beside them.
"""

import contextlib
import fcntl
import glob
import json
import os
import select
import signal
import subprocess
import time


# Values of $GODWIT_LAB; "" is what `godwit lab` means without it.
LABS = ["", "second"]


class Failure(Exception):
    pass


def lab_name():
    """Of the lab's folders in /run/godwit and /var/lib/godwit."""
    beside = os.environ.get("GODWIT_LAB")
    return "lab-" + beside if beside else "lab"


def lab_id():
    """The beginning of its nodes' names where the machine tells them apart: "gw-n1"."""
    return os.environ.get("GODWIT_LAB") or "gw"


def run(*command, timeout=60, check=True, **options):
    done = subprocess.run([str(c) for c in command], stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, text=True, timeout=timeout, **options)
    if check and done.returncode != 0:
        raise Failure("%s: exit code %d\n%s%s" % (" ".join(map(str, command)), done.returncode,
                                                  done.stdout, done.stderr))
    return done


def wait_for(what, condition, timeout=30):
    """Polls until condition() gives something true, and returns it."""
    end = time.monotonic() + timeout
    while True:
        result = condition()
        if result:
            return result
        if time.monotonic() > end:
            raise Failure("%s: not within %s s" % (what, timeout))
        time.sleep(0.02)


def processes_of_lab():
    """(pid, start time, name) of what runs on its hosts or in its capsules, as strings. Other labs
    and tests may be there beside it."""
    hosts = set()
    for path in glob.glob("/run/netns/%s-*" % lab_id()):
        with contextlib.suppress(OSError):
            hosts.add(os.stat(path).st_ino)
    group = "/godwit/%s-n" % lab_id()
    found = set()
    for folder in glob.glob("/proc/[0-9]*"):
        with contextlib.suppress(OSError):
            with open(folder + "/cgroup") as text:
                inside = group in text.read()
            if not inside and os.stat(folder + "/ns/net").st_ino not in hosts:
                continue
            found.add(_identity(folder))
    return found


def _identity(folder):
    with open(folder + "/stat") as text:
        name, _, rest = text.read().partition("(")[2].rpartition(") ")
    words = rest.split()
    return (folder.split("/")[2], words[19], name, words[0])


def still_there(processes):
    """Those that have not ended. Of the dead it is pid 1's to reap orphans, which takes its time."""
    left = set()
    for pid, started, name, _ in processes:
        with contextlib.suppress(OSError):
            now = _identity("/proc/" + pid)
            if now[1] == started and now[3] != "Z":
                left.add("%s %s" % (pid, name))
    return left


def traces_of_lab():
    """What a lab must not leave, by kind."""
    name, beginning = lab_name(), lab_id() + "-"
    with open("/proc/self/mountinfo") as text:
        mounts = {line.split()[4] for line in text}
    cgroups = set()
    for mount in glob.glob("/sys/fs/cgroup/*/") + ["/sys/fs/cgroup/"]:
        cgroups |= set(glob.glob("%sgodwit/%sn*/**/" % (mount, beginning), recursive=True))
        cgroups |= set(glob.glob("%s**/godwit-%sn*/" % (mount, beginning), recursive=True))
    return {
        "mounts": {each for each in mounts
                   if "/godwit/%s/" % name in each or "/run/netns/" + beginning in each},
        "network namespaces": {each for each in os.listdir("/run/netns")
                               if each.startswith(beginning)} if os.path.isdir("/run/netns") else set(),
        "links": {each for each in os.listdir("/sys/class/net") if each.startswith(("gwp", "gwt"))},
        "control groups": cgroups,
        "folders": set(glob.glob("/run/godwit/%s/*" % name)) |
        set(glob.glob("/var/lib/godwit/%s/*" % name)),
    }


class Pulse:
    """tests/clients/pulse in the lab's client host."""

    def __init__(self, lab, protocol, host, port, connections=1, interval_us=200, size=64):
        self.process = subprocess.Popen(
            lab.client_command(os.path.join(lab.build, "pulse"), "--protocol", protocol, "--host",
                               host, "--port", port, "--connections", connections,
                               "--interval-us", interval_us, "--bytes", size),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)

    def _line(self, timeout):
        ready, _, _ = select.select([self.process.stdout], [], [], timeout)
        line = self.process.stdout.readline() if ready else ""
        if not line:
            raise Failure("the client has ended or hangs")
        return json.loads(line)

    def mark(self, timeout=30):
        """What happened since the last mark."""
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self._line(timeout)

    def finish(self):
        self.process.stdin.close()
        result = self._line(30)
        self.process.wait(30)
        return result

    def kill(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(10)


class Lab:
    def __init__(self, godwit, nodes=2, overlay=False, node_options=()):
        """`node_options`: more options of the daemons."""
        self.godwit = os.path.abspath(godwit)
        self.build = os.path.dirname(self.godwit)
        self.arguments = ["--nodes", str(nodes)] + (["--overlay"] if overlay else [])
        self.node_options = ["--", *map(str, node_options)] if node_options else []
        self.cleanup = contextlib.ExitStack()

    def __enter__(self):
        os.makedirs("/run/godwit", exist_ok=True)
        beside = os.environ.get("GODWIT_LAB")
        while not any(self.take(name) for name in (LABS if beside is None else [beside])):
            time.sleep(0.1)
        run(self.godwit, "lab", "down", timeout=120)
        self.prepare()
        run(self.godwit, "lab", "up", *self.arguments, *self.node_options, timeout=120)
        return self

    def take(self, name):
        """Whether it was free. What this process starts means it then, as does its next Lab."""
        lock = open("/run/godwit/test%s.lock" % ("-" + name if name else ""), "w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            return False
        self.lock = lock
        os.environ["GODWIT_LAB"] = name
        return True

    def prepare(self):
        """What is to be there before its daemons; cleanup takes it away before the lab goes."""

    def __exit__(self, kind, value, trace):
        try:
            self.cleanup.close()
            if kind is not None:
                self.show_logs()
            processes = processes_of_lab()
            run(self.godwit, "lab", "down", timeout=120)
            left = self.left_over(processes)
            if left and kind is None:
                raise Failure("left behind: %s" % left)
        finally:
            self.lock.close()

    def left_over(self, processes):
        def found():
            kinds = dict(traces_of_lab(), processes=still_there(processes))
            return {kind: sorted(names) for kind, names in kinds.items() if names}
        end = time.monotonic() + 10
        while found() and time.monotonic() < end:
            time.sleep(0.05)
        return found()

    def show_logs(self):
        lab = lab_name()
        for path in sorted(glob.glob("/run/godwit/%s/*/*.log" % lab) +
                           glob.glob("/var/lib/godwit/%s/*/*.log" % lab)):
            with open(path, errors="replace") as text:
                print("== %s\n%s" % (path, "".join(text.readlines()[-40:])), flush=True)

    def __call__(self, *arguments, timeout=60, check=True):
        return run(self.godwit, *arguments, timeout=timeout, check=check)

    def client_command(self, *command):
        return [str(c) for c in (self.godwit, "lab", "exec", "client", "--", *command)]

    def client(self, *command, timeout=60, check=True):
        return run(*self.client_command(*command), timeout=timeout, check=check)

    def start(self, name, *command, options=(), port=None, timeout=30):
        """Starts a service on n1 and, with `port`, waits until it answers there."""
        self("run", "--name", name, "--node", "n1", "-d", *options, "--", *command)
        address = self.inspect(name)["address"].split("/")[0]
        if port is not None:
            self.wait_until_it_listens(name, address, port, timeout)
        return address

    def wait_until_it_listens(self, name, address, port, timeout=30):
        probe = "import socket,sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 1)"
        wait_for("%s to listen" % name, lambda: self.client(
            "python3", "-c", probe, address, port, check=False).returncode == 0, timeout)

    def inspect(self, name):
        shown = json.loads(self("inspect", name, "--json").stdout)
        return shown[0] if isinstance(shown, list) else shown

    def migrate(self, name, node, *options, timeout=120):
        # Who gives this command has a machine of their own; here it shares one with the client.
        done = run("nice", "-n", "19", self.godwit, "migrate", name, node, "--json", *options,
                   timeout=timeout, check=False)
        try:
            result = json.loads(done.stdout)
        except ValueError:
            raise Failure("migrate: %s%s" % (done.stdout, done.stderr))
        result["exit_code"] = done.returncode
        return result

    def move(self, name, node, *options, timeout=120):
        """A migration that must succeed."""
        result = self.migrate(name, node, *options, timeout=timeout)
        if result.get("outcome") != "moved":
            raise Failure("move of %s to %s: %s" % (name, node, json.dumps(result)))
        return result

    def pulse(self, *arguments, **options):
        client = Pulse(self, *arguments, **options)
        self.cleanup.callback(client.kill)
        return client
