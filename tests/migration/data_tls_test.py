#!/usr/bin/env python3
"""What a move sends can be read on the way without TLS, and cannot with it; nodes that differ about it
do not move services to each other."""
import json
import os
import secrets
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
from godwit_lab import Failure, Lab, lab_name, wait_for  # noqa: E402

# Reads all frames of the switch; says "ready", then at the end of its standard input how often the
# word was in them.
SNIFFER = """
import select, socket, sys
word = sys.argv[1].encode()
wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
wire.setsockopt(socket.SOL_SOCKET, 33, 256 << 20)  # SO_RCVBUFFORCE
print("ready", flush=True)
found = frames = 0
while True:
    ready, _, _ = select.select([wire, sys.stdin], [], [])
    if wire in ready:
        found += wire.recv(1 << 17).count(word)
        frames += 1
    elif sys.stdin in ready:
        print(found, frames)
        break
"""


class Sniffer:
    def __init__(self, lab, word):
        self.process = subprocess.Popen(
            [lab.godwit, "lab", "exec", "sw", "--", "python3", "-c", SNIFFER, word],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        lab.cleanup.callback(self.process.kill)
        if self.process.stdout.readline() != "ready\n":
            raise Failure("the sniffer does not start")

    def finish(self):
        out, _ = self.process.communicate("\n", timeout=30)
        return [int(each) for each in out.split()]


def move_and_listen(lab, strategy):
    word = secrets.token_hex(16)
    name = "secret"
    # On its stack, many times over: frames cut it somewhere.
    lab.start(name, "sleep", "1000", options=["--env", "X=" + word * 64])
    sniffer = Sniffer(lab, word)
    moved = lab.migrate(name, "n2", "--strategy", strategy, "--compress", "none")
    if moved["outcome"] != "moved":
        raise Failure("%s: %s" % (strategy, moved))
    found, frames = sniffer.finish()
    lab("rm", "-f", name)
    if frames < 20:
        raise Failure("only %d frames were seen" % frames)
    return found


def main():
    godwit = sys.argv[1]
    for tls in ("off", "on"):
        with Lab(godwit, node_options=["--data-tls", tls]) as lab:
            for strategy in ("precopy", "postcopy"):
                found = move_and_listen(lab, strategy)
                print("--data-tls %s, %s: the secret was seen %d times" % (tls, strategy, found))
                if (found > 0) != (tls == "off"):
                    raise Failure("it should %shave been seen" % ("not " if tls == "on" else ""))
            if tls == "off":
                continue
            # One of them is started again, and has it otherwise.
            lab.start("stays", "sleep", "1000")
            with open("/run/godwit/%s/n2/pid" % lab_name()) as text:
                daemon = int(text.read().split()[0])
            os.kill(daemon, 15)
            wait_for("the end of a daemon", lambda: not os.path.exists("/proc/%d" % daemon) or open(
                "/proc/%d/stat" % daemon).read().rsplit(")", 1)[1].split()[0] == "Z")
            lab("lab", "up", *lab.arguments, "--", "--data-tls", "off", timeout=60)
            for options in ((), ("--dry-run",)):
                asked = lab.migrate("stays", "n2", *options)
                codes = [each["code"] for each in asked.get("refusals", [])]
                if asked["exit_code"] != 3 or "node.data_tls" not in codes:
                    raise Failure("nodes that differ: %s" % json.dumps(asked))
            print("refused: %s" % asked["refusals"])
    print("passed")


if __name__ == "__main__":
    main()
