#!/usr/bin/env python3
"""A service that runs from a checkpoint file before its memory has been read, disturbed.

  lazy_restore_test.py build/godwit [--only TEXT]

In each case a service is saved and restored with most of its memory to follow slowly; meanwhile a
mover or a daemon is killed, the file is moved away, replaced or damaged, or the service is ended. Its
clients check every answer and it checks its own memory. Afterwards nothing is missing and there is
one copy.
"""
import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import godwit_lab  # noqa: E402
from breaking import Faults, movers  # noqa: E402
from godwit_lab import Failure, wait_for  # noqa: E402
from post_copy_test import MIB, PORT, SERVICE, SLOW, PostCopy  # noqa: E402

NODE = "n2"
# Where nothing is to happen before the last page is there.
FASTER = ("--bandwidth", "20MiB")


class LazyRestore(PostCopy):
    def __init__(self, lab, faults, folder):
        self.file = os.path.join(folder, "svc.gw")
        self.clients = None
        super().__init__(lab, faults)

    def save(self, *options):
        self.stop_clients()
        self.lab("checkpoint", SERVICE, "-o", self.file, *options)
        self.source, self.destination = "n1", NODE

    def stop_clients(self):
        if self.clients is not None:
            total = self.clients.finish()
            if total["total_wrong"]:
                raise Failure("clients: %s" % total)
            self.clients = None

    def start_clients(self):
        address = self.lab.inspect(SERVICE)["address"].split("/")[0]
        self.lab.wait_until_it_listens(SERVICE, address, PORT)
        self.clients = self.lab.pulse("echo", address, PORT, connections=3, interval_us=1000)

    def begin(self, *options, limit=SLOW):
        """Back when it runs and most of its pages are still to come."""
        self.process = subprocess.Popen(
            [self.lab.godwit, "restore", self.file, "--node", NODE, "--lazy", "--json", *limit,
             *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

        def runs():
            if self.process.poll() is not None:
                raise Failure("restore has ended: %s" % (self.process.communicate(),))
            return self.lab("inspect", SERVICE, check=False).returncode == 0 and \
                self.lab.inspect(SERVICE)["pages_at"]
        wait_for("the service to run there", runs, 20)
        if self.missing() < MIB * 64:
            raise Failure("only %d pages are missing" % self.missing())
        self.start_clients()
        self.answers()

    def again(self):
        """A service to be saved, whatever became of the one before."""
        self.stop_clients()
        if self.lab("inspect", SERVICE, check=False).returncode == 0:
            self.lab("rm", "--force", SERVICE)
        self.start()

    # -- cases

    def undisturbed(self, compress):
        self.save("--compress", compress)
        self.begin(limit=FASTER)
        result = self.result()
        if result["outcome"] != "restored" or result["error"] or \
                result["pages_left_behind"] < MIB * 128:
            raise Failure(json.dumps(result))
        self.settled()

    def at_once(self):
        """Unlimited, and to the end of it, before anybody asks anything."""
        self.save()
        done = self.lab("restore", self.file, "--node", NODE, "--lazy", "--json")
        if json.loads(done.stdout)["outcome"] != "restored" or self.missing():
            raise Failure(done.stdout)
        self.start_clients()
        self.settled()

    def mover_killed(self):
        self.save()
        self.begin()
        self.kill(wait_for("a mover", movers, 5))
        if self.missing() == 0:
            raise Failure("nothing is missing any more")
        self.settled()
        self.result()

    def daemon_killed(self):
        self.save()
        self.begin()
        self.kill_daemon(NODE)
        if self.missing() == 0:
            raise Failure("nothing is missing any more")
        self.settled()
        self.result()

    def file_away(self):
        self.save()
        self.begin()
        os.rename(self.file, self.file + ".away")
        self.kill(wait_for("a mover", movers, 5))
        shown = wait_for("the reason", lambda: self.lab.inspect(SERVICE)["pages_error"], 10)
        if self.file not in shown or self.missing() == 0:
            raise Failure("%s, %d missing" % (shown, self.missing()))
        # Another file in its place is not taken for it.
        with open(self.file + ".away", "rb") as whole, open(self.file, "wb") as other:
            other.write(whole.read(1 << 20))
        time.sleep(1)
        if self.missing() == 0:
            raise Failure("pages came from half a file")
        os.rename(self.file + ".away", self.file)
        self.settled()
        self.result()

    def another_file(self):
        self.save()
        os.rename(self.file, self.file + ".first")
        self.again()
        self.save()
        os.rename(self.file, self.file + ".second")
        os.rename(self.file + ".first", self.file)
        self.begin()
        os.rename(self.file, self.file + ".first")
        os.rename(self.file + ".second", self.file)
        self.kill(wait_for("a mover", movers, 5))
        wait_for("the reason", lambda: "another file" in self.lab.inspect(SERVICE)["pages_error"], 10)
        os.rename(self.file + ".first", self.file)
        self.settled()
        self.result()

    def damaged(self):
        """All but the pages of one frame come, and those are lost only when a user says so."""
        self.save()
        size = os.stat(self.file).st_size
        with open(self.file, "r+b") as file:
            file.seek(size // 2)
            byte = file.read(1)
            file.seek(size // 2)
            file.write(bytes([byte[0] ^ 1]))
        self.begin(limit=("--bandwidth", "200MiB"))

        def rest():
            before = self.missing()
            time.sleep(1)
            shown = self.lab.inspect(SERVICE)
            return shown if 0 < shown["pages_missing"] == before <= 1024 else None
        shown = wait_for("all but the damaged frame", rest, 30)
        if "checksum differs" not in shown["pages_error"] or "offset" not in shown["pages_error"]:
            raise Failure(shown["pages_error"])
        time.sleep(1)
        if self.missing() != shown["pages_missing"] or not self.lab.inspect(SERVICE)["pages_at"]:
            raise Failure("%d pages were missing, now %d" % (shown["pages_missing"], self.missing()))
        self.lab("migrate", "--source-lost", SERVICE, "--json", check=False, timeout=60)
        wait_for("the end of the service", lambda: self.lab.inspect(SERVICE)["state"] == "exited", 20)
        if self.lab.inspect(SERVICE)["exit_code"] != 128 + signal.SIGBUS:
            raise Failure("exit code %s" % self.lab.inspect(SERVICE)["exit_code"])
        self.result()
        self.clients.kill()
        self.clients = None
        self.lab("rm", SERVICE)
        self.clean(NODE, 0)

    def ended_meanwhile(self):
        self.save()
        self.begin()
        self.lab("rm", "--force", SERVICE)
        self.result()
        self.clients.kill()
        self.clients = None
        for node in ("n1", "n2"):
            self.clean(node, 0)

    def refused(self):
        """Moves and checkpoints wait for the last page; a file to be compared is not restored lazily."""
        self.save("--verify")
        done = self.lab("restore", self.file, "--lazy", "--node", NODE, check=False)
        if done.returncode == 0 or "without --lazy" not in done.stdout + done.stderr:
            raise Failure(done.stdout + done.stderr)
        self.clean(NODE, 0)
        self.lab("restore", self.file, "--node", "n1")
        self.save()
        self.begin()
        for command in (("migrate", SERVICE, "n1"), ("checkpoint", SERVICE, "-o", self.file + "2")):
            tried = self.lab(*command, check=False)
            if tried.returncode == 0 or self.file not in tried.stderr:
                raise Failure("%s: %s" % (command, tried.stdout + tried.stderr))
        self.settled()
        self.result()

    def fault_point(self, point):
        """Its mover ends there: nothing is left, and the file is as good as before."""
        self.save()
        self.faults.arm(point, "kill")
        done = self.lab("restore", self.file, "--node", NODE, "--lazy", check=False)
        hit = self.faults.hit_by_now()
        self.faults.disarm()
        if not hit or done.returncode == 0:
            raise Failure("%s was not hit, or it was restored all the same" % point)
        self.stop_clients()
        self.clean(NODE, 0)
        self.begin(limit=FASTER)
        self.settled()
        self.result()


CASES = [
    ("lazy restore", lambda t: t.undisturbed("none")),
    ("lazy restore, lz4", lambda t: t.undisturbed("lz4")),
    ("lazy restore, zstd", lambda t: t.undisturbed("zstd")),
    ("at once", LazyRestore.at_once),
    ("mover killed", LazyRestore.mover_killed),
    ("daemon killed", LazyRestore.daemon_killed),
    ("file away", LazyRestore.file_away),
    ("another file", LazyRestore.another_file),
    ("damaged frame", LazyRestore.damaged),
    ("ended meanwhile", LazyRestore.ended_meanwhile),
    ("refused", LazyRestore.refused),
    ("killed before the commit", lambda t: t.fault_point("restore.ready")),
    ("killed after the commit", lambda t: t.fault_point("restore.committed")),
    ("killed over the pages it needs", lambda t: t.fault_point("replica.apply_pages")),
]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("godwit")
    parser.add_argument("--only", default="")
    options = parser.parse_args()
    faults = Faults()
    try:
        with tempfile.TemporaryDirectory(prefix="godwit-test-") as folder, \
                godwit_lab.Lab(options.godwit) as lab:
            test = LazyRestore(lab, faults, folder)
            for name, case in CASES:
                if options.only not in name:
                    continue
                begin = time.monotonic()
                try:
                    case(test)
                    test.again()
                except Failure as failure:
                    raise Failure("%s: %s" % (name, failure))
                print("%-36s ok  %.1f s" % (name, time.monotonic() - begin), flush=True)
            test.stop_clients()
    finally:
        faults.remove()
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Failure as failure:
        print("lazy_restore_test: %s" % failure, file=sys.stderr)
        sys.exit(1)
