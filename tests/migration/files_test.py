#!/usr/bin/env python3
"""Files below a service's layer that are missing or different at the destination come along.

  files_test.py build/godwit

The two nodes have different files under the same paths: n2's daemon runs in a mount namespace of
its own, in which other folders lie over the root of the service and over a folder of the host.
"""
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
import godwit_lab  # noqa: E402
from godwit_lab import Failure, wait_for  # noqa: E402

PORT = 7200
ASK = """
import socket, sys
asked = socket.create_connection((sys.argv[1], %d), 10)
asked.settimeout(20)
text = b""
while True:
    more = asked.recv(65536)
    if not more:
        break
    text += more
print(text.decode(), end="")
""" % PORT


def expect(what, is_so):
    if not is_so:
        raise Failure(what)


def write(path, content):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as file:
        file.write(content)


def tree(folder):
    """Every file below it: content, mode, owner, time of change."""
    found = {}
    for where, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(where, name)
            info = os.lstat(path)
            with open(path, "rb") as file:
                content = hashlib.sha256(file.read()).hexdigest()
            found[os.path.relpath(path, folder)] = (content, info.st_mode, info.st_uid, info.st_gid,
                                                    info.st_mtime_ns)
    return found


def libraries(program):
    text = godwit_lab.run("ldd", program).stdout
    return sorted(set(re.findall(r"(/\S+) \(0x", text)))


def make_roots(program, one, two):
    """The service's root for n1, and another one for n2."""
    write(one + "/data/deep/private", os.urandom(100_000))
    write(one + "/data/shared", os.urandom(70_000))
    write(one + "/data/open", os.urandom(50_000))
    write(one + "/data/equal", os.urandom(40_000))
    os.chmod(one + "/data/open", 0o640)
    os.chown(one + "/data/open", 12, 34)
    os.setxattr(one + "/data/open", "user.note", b"kept")
    os.utime(one + "/data/open", ns=(10 ** 18, 10 ** 18 + 123_456_789))
    os.makedirs(one + "/bin")
    shutil.copy(program, one + "/bin/file_user")
    for library in libraries(program):
        os.makedirs(os.path.dirname(one + library), exist_ok=True)
        shutil.copy(library, one + library)
    shutil.copytree(one, two, dirs_exist_ok=True)
    os.chown(two + "/data/open", 12, 34)
    # Missing with its folder; of the same size; of another size; a library missing, another one.
    shutil.rmtree(two + "/data/deep")
    write(two + "/data/shared", os.urandom(70_000))
    write(two + "/data/open", os.urandom(20_000))
    missing = [name for name in libraries(program) if "/libm.so" in name][0]
    other = [name for name in libraries(program) if "/libgcc_s.so" in name][0]
    os.unlink(two + missing)
    with open(two + other, "ab") as file:
        file.write(b"another build")
    return {"/data/deep/private", "/data/shared", "/data/open", missing, other}


class Daemon:
    """The daemon of a node, started again with other files in its sight."""

    def __init__(self, lab, node, over):
        pid_file = "/run/godwit/%s/%s/pid" % (godwit_lab.lab_name(), node)
        with open(pid_file) as file:
            pid = int(file.read().split()[0])
        with open("/proc/%d/cmdline" % pid, "rb") as file:
            arguments = [word.decode() for word in file.read().split(b"\0")[:-1]]
        arguments = [lab.godwit] + arguments[1:arguments.index("--ready-fd")]
        os.kill(pid, signal.SIGTERM)
        wait_for("the end of %s's daemon" % node, lambda: not os.path.exists("/proc/%d" % pid))
        script = "".join("mount --bind '%s' '%s' && " % pair for pair in over) + 'exec "$@"'
        self.process = subprocess.Popen(
            [lab.godwit, "lab", "exec", node, "--", "unshare", "-m", "sh", "-c", script, "sh",
             *arguments], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL)
        lab.cleanup.callback(self.end)
        with open("/proc/%d/stat" % self.process.pid) as file:
            ticks = file.read().rpartition(")")[2].split()[19]
        with open(pid_file, "w") as file:
            file.write("%d %s\n" % (self.process.pid, ticks))
        wait_for("another daemon of %s" % node, lambda: lab.client(
            "true").returncode == 0 and godwit_lab.run(
                lab.godwit, "lab", "exec", node, "--", lab.godwit, "ps", check=False,
            ).returncode == 0)

    def end(self):
        # `lab down` asks it to end as well; whoever comes first.
        self.process.terminate()
        self.process.wait(30)


class Test:
    def __init__(self, lab, folder):
        self.lab = lab
        self.roots = {"n1": folder + "/root", "n2": folder + "/other-root"}
        self.host = {"n1": folder + "/host", "n2": folder + "/other-host"}
        self.image = folder + "/files.gw"
        self.differing = make_roots(os.path.join(lab.build, "file_user"), self.roots["n1"],
                                    self.roots["n2"])
        write(self.host["n1"] + "/file", b"as n1 has it\n")
        write(self.host["n2"] + "/file", b"as n2 has it\n")
        self.before = self.trees()
        Daemon(lab, "n2", [(self.roots["n2"], self.roots["n1"]),
                           (self.host["n2"], self.host["n1"])])

    def trees(self):
        return {path: tree(path) for path in (*self.roots.values(), *self.host.values())}

    def right(self, when, address, name="files"):
        done = self.lab.client("python3", "-c", ASK, address, check=False)
        expect("%s: %s%s" % (when, done.stdout, done.stderr), done.stdout == "OK\n")
        print("%s: right" % when, flush=True)
        after = self.trees()
        for path, files in self.before.items():
            expect("%s: %s was changed" % (when, path), after[path] == files)

    def layer(self, node, name="files"):
        """Files of the service's layer there, without those that every capsule has."""
        upper = "/var/lib/godwit/%s/%s/services/%s/layer/upper" % (godwit_lab.lab_name(), node, name)
        found = {"/" + path for path in tree(upper)}
        return upper, {path for path in found if not path.startswith("/etc/")}

    def moves(self):
        lab = self.lab
        address = lab.start("files", "/bin/file_user", PORT, "/data", port=PORT,
                            options=("--rootfs", self.roots["n1"]))
        self.right("unmoved", address)
        seen = lab.migrate("files", "n2", "--dry-run")
        expect("a dry run: %s, not %s" % (seen, sorted(self.differing)),
               {each["path"] for each in seen["differences"]} == self.differing and
               seen["outcome"] == "movable")
        for node, strategy in (("n2", "precopy"), ("n1", "precopy"), ("n2", "cold"),
                               ("n1", "precopy")):
            lab.move("files", node, "--strategy", strategy)
            self.right("moved to %s, %s" % (node, strategy), address)
            upper, files = self.layer(node)
            expect("layer at %s: %s, not %s" % (node, sorted(files), sorted(self.differing)),
                   files == self.differing)
            expect("attributes at %s" % node,
                   os.getxattr(upper + "/data/open", "user.note") == b"kept")

    def saved_and_restored(self):
        lab = self.lab
        lab("stop", "files")
        lab("rm", "files")
        address = lab.start("files", "/bin/file_user", PORT, "/data", port=PORT,
                            options=("--rootfs", self.roots["n1"]))
        lab("checkpoint", "files", "-o", self.image, "--leave-running")
        shown = json.loads(lab("image", "show", self.image, "--json").stdout)
        paths = {each["path"] for each in shown["files"]}
        expect("files in the image: %s" % sorted(paths), paths >= self.differing | {"/data/equal"})
        expect("not in the text", "/data/shared" in lab("image", "show", self.image).stdout)
        lab("checkpoint", "files", "-o", self.image + ".all", "--with-files")
        done = lab("restore", self.image, "--node", "n2", "--json", check=False)
        refused = json.loads(done.stdout)
        print("refused: %s" % refused["error"], flush=True)
        expect("restored without its files: %s" % refused, refused["outcome"] == "refused")
        codes = {(each["code"], each["object"]) for each in refused["refusals"]}
        expect("refusals %s" % codes, codes == {("file.differs", path) for path in self.differing})
        lab("restore", self.image + ".all", "--node", "n2")
        self.right("restored with its files", lab.inspect("files")["address"].split("/")[0])
        lab("stop", "files")
        lab("rm", "files")

    def refused(self):
        """A file on a disk of its own at the destination: the layer is not above it."""
        lab = self.lab
        script = "import sys,time; f = open(sys.argv[1]); print(f.read(4), flush=True); time.sleep(1000)"
        lab("run", "--name", "reader", "--node", "n1", "-d", "--", "/usr/bin/python3", "-c", script,
            self.host["n1"] + "/file")
        wait_for("the reader", lambda: "as n" in lab("logs", "reader").stdout)
        seen = lab.migrate("reader", "n2", "--dry-run")
        expect("a dry run: %s" % seen, [(each["code"], each["object"]) for each in seen["refusals"]]
               == [("file.differs", self.host["n1"] + "/file")] and seen["outcome"] == "refused")
        result = lab.migrate("reader", "n2")
        expect("outcome %s" % result, result["outcome"] == "rolled_back")
        print("rolled back: %s" % result["error"], flush=True)
        for word in (self.host["n1"] + "/file", "another one", "disk of its own"):
            expect("%s is not in %s" % (word, result), word in json.dumps(result))
        expect("it does not run on", lab.inspect("reader")["state"] == "running")
        lab("stop", "reader")
        lab("rm", "reader")


def main():
    with tempfile.TemporaryDirectory(prefix="godwit-test-", dir="/var/tmp") as folder, \
            godwit_lab.Lab(sys.argv[1]) as lab:
        os.chmod(folder, 0o755)
        test = Test(lab, folder)
        test.moves()
        test.saved_and_restored()
        test.refused()
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Failure as failure:
        print("files_test: %s" % failure, file=sys.stderr)
        sys.exit(1)
