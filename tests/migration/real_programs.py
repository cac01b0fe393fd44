"""Larger programs for programs_test.py, each with clients of its own kind that check what they get."""
import os
import re
import subprocess

from godwit_lab import Failure

SUBJECTS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "subjects")
POSTGRES = "/usr/lib/postgresql/15/bin"


class Postgres:
    """Bank transfers by pgbench all the time; at the end all books agree and every page is sound."""
    children_come_and_go = True
    clients = []
    # Its shared memory is read in the freeze.
    options = ["--max-downtime", "1s"]
    FOLDER = "/var/lib/postgresql/moved"

    def start(self, lab, folder):
        script = ("set -e; mkdir -p -m 700 {0}; chown postgres {0}; mkdir -p /run/postgresql; "
                  "chown postgres /run/postgresql; exec setpriv --reuid postgres --regid postgres "
                  "--init-groups sh -ec '{1}/initdb -k -A trust -D {0} >/dev/null; "
                  "echo host all all all trust >> {0}/pg_hba.conf; "
                  "exec {1}/postgres -D {0} -c listen_addresses=\"*\"'").format(self.FOLDER, POSTGRES)
        address = lab.start("postgres", "/bin/sh", "-c", script, port=5432, timeout=60)
        self._tool(lab, address, "pgbench", "-q", "-i", "-s", "4", "postgres")
        self.lab, self.address = lab, address
        self.bench = subprocess.Popen(
            lab.client_command(POSTGRES + "/pgbench", "-h", address, "-U", "postgres", "-c", "6",
                               "-j", "2", "-T", "600", "-P", "1", "postgres"),
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        lab.cleanup.callback(self._end)
        return address

    def _end(self):
        if self.bench.poll() is None:
            self.bench.kill()
        self.bench.wait(10)

    def _tool(self, lab, address, tool, *arguments):
        return lab.client("%s/%s" % (POSTGRES, tool), "-h", address, "-U", "postgres", *arguments,
                          timeout=120).stdout

    def _ask(self, query):
        return self._tool(self.lab, self.address, "psql", "-At", "-c", query, "postgres").strip()

    def check(self, lab, address):
        """A transaction leaves all of its marks or none, also in the middle of everything."""
        sums = self._ask("begin isolation level repeatable read; "
                         "select (select sum(abalance) from pgbench_accounts), "
                         "(select sum(tbalance) from pgbench_tellers), "
                         "(select sum(bbalance) from pgbench_branches), "
                         "(select coalesce(sum(delta), 0) from pgbench_history); commit")
        found = re.search(r"^(-?\d+)\|(-?\d+)\|(-?\d+)\|(-?\d+)$", sums, re.M)
        if not found or len(set(found.groups())) != 1:
            raise Failure("postgres: the books do not agree: %s" % sums)
        if self.bench.poll() is not None:
            raise Failure("pgbench has ended: %s" % self.bench.stdout.read())

    def finish(self):
        done = int(self._ask("select count(*) from pgbench_history"))
        self.bench.kill()
        report, _ = self.bench.communicate(timeout=10)
        if done == 0 or re.search(r"error|abort|fatal|[1-9][0-9]* failed", report, re.I):
            raise Failure("pgbench: %s" % report)
        self._tool(self.lab, self.address, "psql", "-q", "-c", "create extension amcheck", "postgres")
        self._tool(self.lab, self.address, "pg_amcheck", "--heapallindexed", "postgres")
        if self._ask("select sum(checksum_failures) from pg_stat_database") != "0":
            raise Failure("postgres: checksums fail")
        print("postgres: %d transactions, the books agree, every page and index is sound" % done)

    def allowed(self, line):
        return not re.search(r"\b(PANIC|FATAL|ERROR|WARNING)\b", line) or \
            "unexpected EOF on client connection" in line


class Multiprocessing:
    clients = [("http", 8100, {"connections": 4, "interval_us": 2000})]

    def start(self, lab, folder):
        return lab.start("multiprocessing", "/usr/bin/python3",
                         os.path.join(SUBJECTS, "multiprocessing_server.py"), "8100", port=8100)

    def allowed(self, line):
        return line == "ready"


class Node(Multiprocessing):
    clients = [("http", 8200, {"connections": 4, "interval_us": 2000})]

    def start(self, lab, folder):
        return lab.start("node", "/usr/bin/node", os.path.join(SUBJECTS, "node_server.js"), "8200",
                         port=8200)
