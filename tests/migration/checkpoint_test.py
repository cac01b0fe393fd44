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


def key_file(folder, name):
    path = os.path.join(folder, name)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), "wb") as file:
        file.write(os.urandom(32))
    return path


def a_sealed_file_opens_with_its_key_alone(lab, address, plain, folder):
    key, other = key_file(folder, "key"), key_file(folder, "other")
    path = os.path.join(folder, "sealed.gw")
    redis(lab, address, "set", "key", "a secret of sixteen letters")
    os.chmod(key, 0o644)
    done = lab("checkpoint", "store", "-o", path, "--encrypt", key, check=False)
    expect("a key that all can read: %s" % done.stderr,
           done.returncode != 0 and "chmod 600" in done.stdout + done.stderr)
    expect("a file for no key", not os.path.exists(path))
    expect("it does not run on", redis(lab, address, "ping") == "PONG")
    os.chmod(key, 0o600)
    lab("checkpoint", "store", "-o", path, "--encrypt", key, "--compress", "lz4")
    with open(path, "rb") as file:
        stored = file.read()
    expect("it can be read", b"a secret of sixteen letters" not in stored)
    bad = os.path.join(folder, "changed")
    with open(bad, "wb") as file:
        file.write(stored[:5000] + bytes([stored[5000] ^ 1]) + stored[5001:])
    for what, said, words in (
            ("no key", "it is encrypted", (path,)),
            ("another key", "the key is another one", (path, "--decrypt", other)),
            ("a changed file", "offset", (bad, "--decrypt", key)),
            ("a plain file", "it is not encrypted", (plain, "--decrypt", key))):
        for command in (("restore",), ("image", "show")):
            done = lab(*command, *words, check=False)
            expect("%s: %s" % (what, done.stdout + done.stderr),
                   done.returncode != 0 and said in done.stdout + done.stderr)
        expect("%s: services %s" % (what, names(lab)), names(lab) == [])
    done = lab("restore", path, "--lazy", "--decrypt", key, check=False)
    expect("read in any order: %s" % done.stderr, done.returncode != 0 and names(lab) == [])
    image = json.loads(lab("image", "show", path, "--decrypt", key, "--json").stdout)
    expect("not complete", image["complete"])
    lab("restore", path, "--decrypt", key)
    expect("data", redis(lab, address, "get", "key") == "a secret of sixteen letters")


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
        a_sealed_file_opens_with_its_key_alone(lab, address, path, folder)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Failure as failure:
        print("checkpoint_test: %s" % failure, file=sys.stderr)
        sys.exit(1)
