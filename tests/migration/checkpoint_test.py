#!/usr/bin/env python3
"""A redis goes into files and comes out of them on the other node, with its data and its clocks.

  checkpoint_test.py build/godwit
"""
import json
import os
import sys
import tempfile

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
import godwit_lab  # noqa: E402
from godwit_lab import Failure  # noqa: E402

PORT = 6379


def expect(what, is_so):
    if not is_so:
        raise Failure(what)


def redis(lab, address, *words):
    return lab.client("redis-cli", "-h", address, "-p", PORT, *words).stdout.strip()


def uptime(lab):
    """CLOCK_BOOTTIME of the capsule, as its time namespace shows it."""
    return float(lab("exec", "store", "--", "cat", "/proc/uptime").stdout.split()[0])


def names(lab):
    return [each["name"] for each in json.loads(lab("ps", "--json").stdout)]


def save_and_show(lab, address, path):
    saved = json.loads(lab("checkpoint", "store", "-o", path, "--leave-running", "--json").stdout)
    expect("outcome %s" % saved["outcome"], saved["outcome"] == "saved")
    expect("mode of the file", os.stat(path).st_mode & 0o777 == 0o600)
    expect("it does not run on", redis(lab, address, "get", "key") == "value")
    image = json.loads(lab("image", "show", path, "--json").stdout)
    expect("not complete", image["complete"])
    expect("size", image["bytes"] == os.stat(path).st_size)
    expect("processes %s" % image["processes"],
           [each["name"] for each in image["processes"]] == ["redis-server"])
    what = [each["what"] for each in image["processes"][0]["descriptors"]]
    expect("no listening socket in %s" % what, "tcp 0.0.0.0:%d listen" % PORT in what)
    lab("image", "show", "--verbose", path)


def damaged_files_create_nothing(lab, path, folder):
    with open(path, "rb") as file:
        whole = file.read()
    for what, content in (("cut", whole[:len(whole) // 2]),
                          ("changed", whole[:5000] + bytes([whole[5000] ^ 1]) + whole[5001:]),
                          ("foreign", b"#!/bin/sh\n" * 100), ("empty", b"")):
        bad = os.path.join(folder, what)
        with open(bad, "wb") as file:
            file.write(content)
        done = lab("restore", bad, "--node", "n2", check=False)
        expect("%s file was restored" % what, done.returncode != 0)
        if content:
            expect("%s: no offset in %s" % (what, done.stdout + done.stderr),
                   "offset" in done.stdout + done.stderr)
        expect("%s: services %s" % (what, names(lab)), names(lab) == [])
        expect("%s shown" % what, lab("image", "show", bad, check=False).returncode == 1)


def what_cannot_be_written_says_why(lab, address, folder):
    done = lab("checkpoint", "store", "-o", os.path.join(folder, "no", "such"), check=False)
    expect("no folder: %s" % done.stderr,
           done.returncode == 4 and "No such file" in done.stdout + done.stderr)
    expect("it does not run on", redis(lab, address, "ping") == "PONG")


def main():
    with tempfile.TemporaryDirectory(prefix="godwit-test-") as folder, \
            godwit_lab.Lab(sys.argv[1]) as lab:
        path = os.path.join(folder, "store.gw")
        address = lab.start("store", "/usr/bin/redis-server", "--port", PORT, "--bind", "0.0.0.0",
                            "--save", "", "--protected-mode", "no", port=PORT)
        redis(lab, address, "set", "key", "value")
        what_cannot_be_written_says_why(lab, address, folder)
        save_and_show(lab, address, path)
        redis(lab, address, "set", "key", "later")
        before = uptime(lab)
        lab("checkpoint", "store", "-o", path)
        expect("services %s" % names(lab), names(lab) == [])
        damaged_files_create_nothing(lab, path, folder)
        lab("restore", path, "--node", "n2")
        shown = lab.inspect("store")
        expect("it runs on %s" % shown["node"], shown["node"] == "n2")
        expect("address %s" % shown["address"], shown["address"].split("/")[0] == address)
        expect("data", redis(lab, address, "get", "key") == "later")
        expect("clock went back", uptime(lab) >= before)
        lab.move("store", "n1")
        expect("data after a move", redis(lab, address, "get", "key") == "later")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Failure as failure:
        print("checkpoint_test: %s" % failure, file=sys.stderr)
        sys.exit(1)
