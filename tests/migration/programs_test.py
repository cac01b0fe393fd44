#!/usr/bin/env python3
"""Real programs move there and back under load; their clients check every answer.

  programs_test.py build/godwit PROGRAM [MOVES]     $GODWIT_MOVES overrides MOVES;
  $GODWIT_VERIFY_EVERY=1 compares every page in every move, not in every fourth;
  $GODWIT_STRATEGY=postcopy,hybrid moves it by these, in turns, instead of by default

After each move: the outcome is "moved", no answer was wrong or lost, every connection is the one
that was opened at the beginning; now and then every page was compared (--verify); and the tree of processes is the same as the pids inside of the
service show it (parents, groups, sessions, threads). At the end the program's own log is searched
for complaints.
"""
import contextlib
import json
import os
import re
import select
import signal
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
import godwit_lab  # noqa: E402
from godwit_lab import Failure  # noqa: E402
import process_view  # noqa: E402
from real_programs import Multiprocessing, Node, Postgres  # noqa: E402

# So often every page of the program is compared before it runs at its new place.
VERIFY_EVERY = int(os.environ.get("GODWIT_VERIFY_EVERY") or 4)
STRATEGIES = [each for each in (os.environ.get("GODWIT_STRATEGY") or "").split(",") if each]
SUBJECTS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "subjects")

NGINX = """
daemon off; master_process on; worker_processes 2; user www-data;
error_log stderr warn; pid {folder}/nginx.pid;
events {{ worker_connections 1024; }}
http {{
  access_log off; keepalive_requests 100000000; keepalive_timeout 1h;
  server {{ listen 8080 reuseport; listen 8081; location / {{ root {folder}; }} }}
}}
"""


class Wrk:
    """wrk as further load; it counts errors of sockets and answers that are not 2xx."""

    def __init__(self, lab, url):
        self.process = subprocess.Popen(
            lab.client_command("wrk", "-t1", "-c8", "-d3600s", "--timeout", "5s", url),
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        lab.cleanup.callback(self.kill)

    def kill(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(10)

    def finish(self):
        if self.process.poll() is not None:
            raise Failure("wrk has ended: %s" % self.process.stdout.read())
        self.process.send_signal(signal.SIGINT)
        report, _ = self.process.communicate(timeout=30)
        for complaint in ("Socket errors", "Non-2xx"):
            if complaint in report:
                raise Failure("wrk: %s" % report)
        done = re.search(r"(\d+) requests in", report)
        if not done or int(done.group(1)) == 0:
            raise Failure("wrk: no request was answered: %s" % report)
        print("wrk: %s requests, no error" % done.group(1), flush=True)


class Redis:
    clients = [("redis", 6379, {"connections": 4, "interval_us": 500})]

    def start(self, lab, folder):
        address = lab.start("redis", "/usr/bin/redis-server", "--bind", "0.0.0.0", "--port", "6379",
                            "--save", "", "--protected-mode", "no", "--enable-debug-command", "yes",
                            port=6379)
        lab.client("redis-cli", "-h", address, "debug", "populate", "32768", "filler", "900")
        self.digest = self._digest(lab, address)
        return address

    def _digest(self, lab, address):
        return lab.client("redis-cli", "-h", address, "debug", "digest-value",
                          *["filler:%d" % i for i in range(0, 32768, 128)]).stdout

    def check(self, lab, address):
        if self._digest(lab, address) != self.digest:
            raise Failure("redis: values that nobody writes have changed")


class Memcached:
    clients = [("memcached", 11211, {"connections": 8, "interval_us": 500})]

    def start(self, lab, folder):
        return lab.start("memcached", "/usr/bin/memcached", "-u", "nobody", "-m", "64", "-t", "4",
                         port=11211)


class MemoryServer:
    # Of many connections most are idle in a freeze: those are moved another way.
    clients = [("echo", 7000, {"connections": 2}),
               ("echo", 7000, {"connections": 200, "interval_us": 200000})]

    def start(self, lab, folder):
        return lab.start("memory", os.path.join(lab.build, "memory_server"), "--port", "7000",
                         "--mib", "64", "--dirty-pages-per-s", "5000", "--threads", "8", "--files",
                         "50", port=7000)

    def allowed(self, line):
        return line == "ready"


class MapChanger(MemoryServer):
    """Mappings come, go, move and change thousands of times a second, also in every freeze."""

    def start(self, lab, folder):
        return lab.start("changer", os.path.join(lab.build, "memory_server"), "--port", "7000",
                         "--mib", "16", "--dirty-pages-per-s", "1000", "--threads", "2",
                         "--map-changers", "2", port=7000)


class Nginx:
    clients = [("http", 8080, {"connections": 4, "interval_us": 500}),
               ("http", 8081, {"connections": 4, "interval_us": 500})]

    def start(self, lab, folder):
        os.chmod(folder, 0o755)
        with open(os.path.join(folder, "pulse"), "w") as page:
            page.write("".join("line %d of the page\n" % i for i in range(200)))
        with open(os.path.join(folder, "nginx.conf"), "w") as conf:
            conf.write(NGINX.format(folder=folder))
        address = lab.start("nginx", "/usr/sbin/nginx", "-c", os.path.join(folder, "nginx.conf"),
                            port=8080)
        self.wrk = Wrk(lab, "http://%s:8080/pulse" % address)
        return address

    def finish(self):
        self.wrk.finish()


class HttpServer:
    children_come_and_go = True
    clients = [("http", 8000, {"connections": 4, "interval_us": 2000})]

    def start(self, lab, folder):
        return lab.start("http", "/usr/bin/python3", os.path.join(SUBJECTS, "http_server.py"),
                         "8000", port=8000)

    def allowed(self, line):
        return line == "ready"


PROGRAMS = {"redis": Redis, "memcached": Memcached, "memory_server": MemoryServer,
            "map_changer": MapChanger, "nginx": Nginx, "http_server": HttpServer,
            "postgres": Postgres, "multiprocessing": Multiprocessing, "node": Node}


def check_window(number, what, seen):
    if seen["wrong"] or seen["lost"] or not seen["checked"]:
        raise Failure("move %d, client %s: %s" % (number, what, json.dumps(seen)))


def check_log(lab, name, program):
    log = lab("logs", name).stdout
    allowed = getattr(program, "allowed", None)
    for line in log.splitlines():
        bad = not allowed(line) if allowed else re.search(
            r"\[(emerg|alert|crit|error)\]|Traceback|assert|wrong|corrupt|crash", line, re.I)
        if bad:
            raise Failure("the service's log:\n%s" % log)


def lasting(before, lab, name):
    """The processes that are still there when one that was seen has ended, or after a while."""
    end = time.monotonic() + 1
    while time.monotonic() < end:
        now = process_view.tree(lab.inspect(name)["pid"])
        before = {pid: one for pid, one in before.items() if now.get(pid) == one}
        time.sleep(0.1)
    return before


def moves(lab, program, name, address, count):
    clients = [(what, lab.pulse(what, address, port, **options), options["connections"])
               for what, port, options in program.clients]
    for what, client, _ in clients:  # load before the first move
        seen = {"checked": 0}
        end = time.monotonic() + 30
        while not seen["checked"] and time.monotonic() < end:
            time.sleep(0.3)
            seen = client.mark()
        check_window(0, what, seen)
    passing = getattr(program, "children_come_and_go", False)
    before = process_view.tree(lab.inspect(name)["pid"])
    if passing:
        before = lasting(before, lab, name)
    gaps = []
    for number in range(1, count + 1):
        node = "n2" if number % 2 else "n1"
        options, verify = list(getattr(program, "options", [])), False
        if STRATEGIES:
            options += ["--strategy", STRATEGIES[number % len(STRATEGIES)]]
        elif number % VERIFY_EVERY == 0:
            options, verify = options + ["--verify"], True
        result = lab.move(name, node, *options)
        shown = lab.inspect(name)
        if shown["node"] != node:
            raise Failure("move %d: the service is on %s" % (number, shown["node"]))
        after = process_view.tree(shown["pid"])
        if passing:
            after = {pid: one for pid, one in after.items() if pid in before}
            # A pool of threads grows while it serves; what was there must be there.
            for pid, one in after.items():
                if set(before[pid][-1]) <= set(one[-1]):
                    after[pid] = one[:-1] + before[pid][-1:]
        if after != before:
            raise Failure("move %d: the processes differ:\n%s\n%s" % (number, before, after))
        # Answers from the new place, on every client.
        for what, client, connections in clients:
            answered = 0
            while answered < 20:
                seen = client.mark()
                check_window(number, what, seen) if seen["checked"] else time.sleep(0.01)
                answered += seen["checked"]
                gaps.append(seen["longest_gap_us"])
            if seen["alive"] != connections:
                raise Failure("move %d: connections are gone: %s" % (number, seen))
        if hasattr(program, "check"):
            program.check(lab, address)
        print("move %d to %s%s: freeze %.2f ms, total %.0f ms, rounds %d, longest gap so far %.2f ms" %
              (number, node, ", verified" if verify else "", result["freeze_ns"] / 1e6, result["total_ns"] / 1e6, result["rounds"],
               max(gaps, default=0) / 1e3), flush=True)
    for what, client, _ in clients:
        total = client.finish()
        if total["total_wrong"] or total["total_lost"] or total["reopened"]:
            raise Failure("client %s: %s" % (what, total))
        print("%s: %d answers checked, 0 wrong, 0 lost, 0 reopened" % (what, total["total_checked"]))
    if hasattr(program, "finish"):
        program.finish()
    check_log(lab, name, program)


def main():
    godwit, what = sys.argv[1:3]
    count = int(os.environ.get("GODWIT_MOVES") or (sys.argv[3] if len(sys.argv) > 3 else 20))
    program = PROGRAMS[what]()
    with tempfile.TemporaryDirectory(prefix="godwit-test-") as folder, godwit_lab.Lab(godwit) as lab:
        address = program.start(lab, folder)
        name = json.loads(lab("ps", "--json").stdout)[0]["name"]
        try:
            moves(lab, program, name, address, count)
        except Exception:
            print("== log of the service\n%s" % lab("logs", "-n", "60", name, check=False).stdout)
            raise
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Failure as failure:
        print("programs_test: %s" % failure, file=sys.stderr)
        sys.exit(1)
