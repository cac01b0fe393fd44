#!/usr/bin/env python3
"""--compress: over a slow link auto is quicker than none and the memory that arrives is the same; what
does not shrink, and a fast link, are left alone; files are compressed as wanted.

  compress_test.py build/godwit
"""
import json
import os
import sys
import tempfile

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
import godwit_lab  # noqa: E402
from godwit_lab import Failure, Lab  # noqa: E402

PORT = 7000
MIB = 64


def shape(node, mbit):
    """Both ways of the node's wire; 0: as fast as it goes."""
    netns = "%s-%s" % (godwit_lab.lab_id(), node)
    change = ["add", "dev", "up0", "root", "tbf", "rate", "%dmbit" % mbit, "burst", "128k",
              "latency", "50ms"] if mbit else ["del", "dev", "up0", "root"]
    godwit_lab.run("tc", "-n", netns, "qdisc", *change)


def start(lab, name, fill):
    return lab.start(name, os.path.join(lab.build, "memory_server"), "--port", PORT, "--mib", MIB,
                     "--dirty-pages-per-s", 500, "--fill", fill, port=PORT)


def answers(client, what):
    checked = 0
    while checked < 20:
        seen = client.mark()
        if seen["wrong"] or seen["lost"]:
            raise Failure("%s: %s" % (what, seen))
        checked += seen["checked"]


class Moves:
    def __init__(self, lab, name):
        self.lab, self.name, self.here = lab, name, "n1"
        address = lab.inspect(name)["address"].split("/")[0]
        self.client = lab.pulse("echo", address, PORT)

    def __call__(self, compress, *options):
        self.here = "n2" if self.here == "n1" else "n1"
        moved = self.lab.move(self.name, self.here, "--compress", compress, *options)
        answers(self.client, "moved with %s" % compress)
        print("%s, %s: %.2f s, freeze %.1f ms, %.1f MiB of %.1f on the wire, %s" % (
            self.name, compress, moved["total_ns"] / 1e9, moved["freeze_ns"] / 1e6,
            moved["bytes_pages_wire"] / 2**20, moved["bytes_pages"] / 2**20, moved["compression"]),
            flush=True)
        if moved["bytes_pages"] != moved["pages_sent"] * 4096:
            raise Failure("pages and their bytes: %s" % moved)
        if not moved["bytes_pages_wire"] <= moved["bytes_wire"] < moved["bytes_pages_wire"] * 1.1 + 2**20:
            raise Failure("bytes on the wire: %s" % moved)
        return moved

    def end(self):
        self.client.finish()
        self.lab("rm", "-f", self.name)


def over_a_slow_link(lab):
    start(lab, "words", "words")
    move = Moves(lab, "words")
    for node in ("n1", "n2"):
        shape(node, 200)
    none = move("none", "--verify")
    auto = move("auto", "--verify")
    if auto["compression"] == "none" or auto["total_ns"] > 0.7 * none["total_ns"]:
        raise Failure("auto is not quicker: %s" % auto)
    for codec in ("lz4", "zstd"):
        moved = move(codec, "--verify")
        if moved["compression"] != codec or moved["bytes_pages_wire"] > 0.6 * moved["bytes_pages"]:
            raise Failure("%s: %s" % (codec, moved))
    shown = lab.inspect("words")["last_migration"]
    if shown["compression"] != "zstd" or shown["bytes_pages_wire"] >= shown["bytes_pages"]:
        raise Failure("inspect: %s" % shown)
    told = lab("migrate", "words", "n2" if move.here == "n1" else "n1", "--compress", "zstd",
               "--verbose").stdout
    if "times less, zstd" not in told:
        raise Failure("--verbose does not tell: %s" % told)
    for node in ("n1", "n2"):
        shape(node, 0)
    move.end()


def what_does_not_shrink(lab):
    start(lab, "noise", "noise")
    move = Moves(lab, "noise")
    for node in ("n1", "n2"):
        shape(node, 400)
    moved = move("auto")
    if moved["compression"] != "none":
        raise Failure("noise was compressed: %s" % moved)
    moved = move("zstd", "--verify")
    if moved["bytes_pages_wire"] > moved["bytes_pages"]:
        raise Failure("noise has grown: %s" % moved)
    for node in ("n1", "n2"):
        shape(node, 0)
    move.end()


def a_limit_counts_what_is_on_the_wire(lab):
    start(lab, "limited", "words")
    move = Moves(lab, "limited")
    none = move("none", "--bandwidth", "20MiB")
    zstd = move("zstd", "--bandwidth", "20MiB")
    auto = move("auto", "--bandwidth", "20MiB", "--verify")
    if zstd["total_ns"] > 0.7 * none["total_ns"] or auto["compression"] == "none":
        raise Failure("the limit: none %s, zstd %s, auto %s" % (none, zstd, auto))
    move.end()


def files(lab):
    start(lab, "file", "words")
    with tempfile.TemporaryDirectory(prefix="godwit-test-") as folder:
        sizes = {}
        for codec in ("none", "lz4", "zstd"):
            path = os.path.join(folder, codec)
            lab("checkpoint", "file", "-o", path, "--leave-running", "--verify", "--compress", codec)
            image = json.loads(lab("image", "show", path, "--json").stdout)
            sizes[codec] = image["bytes"]
            epoch = image["epochs"][0]
            if codec not in epoch["compression"] or image["version"] != (1 if codec == "none" else 2):
                raise Failure("image show: %s" % epoch)
            if (epoch["page_bytes_stored"] < epoch["page_bytes"]) != (codec != "none"):
                raise Failure("image show: %s" % epoch)
        print("files: %s" % sizes, flush=True)
        if not sizes["zstd"] < sizes["lz4"] < 0.6 * sizes["none"]:
            raise Failure("sizes of the files: %s" % sizes)
        lab("rm", "-f", "file")
        for codec in ("lz4", "zstd"):
            lab("restore", os.path.join(folder, codec), "--node", "n2")
            address = lab.inspect("file")["address"].split("/")[0]
            client = lab.pulse("echo", address, PORT)
            answers(client, "restored from %s" % codec)
            client.finish()
            lab("rm", "-f", "file")
        path = os.path.join(folder, "zstd")
        with open(path, "r+b") as file:
            file.seek(sizes["zstd"] // 2)
            byte = file.read(1)
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([byte[0] ^ 1]))
        done = lab("restore", path, "--node", "n2", check=False)
        if done.returncode == 0 or "offset" not in done.stdout + done.stderr:
            raise Failure("a damaged file: %s%s" % (done.stdout, done.stderr))


def main():
    with Lab(sys.argv[1]) as lab:
        over_a_slow_link(lab)
        what_does_not_shrink(lab)
        a_limit_counts_what_is_on_the_wire(lab)
        files(lab)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Failure as failure:
        print("compress_test: %s" % failure, file=sys.stderr)
        sys.exit(1)
