#!/usr/bin/env python3
"""A service that cannot be started leaves nothing behind: its name and address are free again.

  failed_start_test.py GODWIT

The lab runs in a mount namespace without any cgroup v2 hierarchy, so that every start fails after
the service's record has been written.
"""

import json
import os
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
from godwit_lab import Failure, Lab  # noqa: E402

INSIDE = "GODWIT_TEST_WITHOUT_CGROUP2"


def unmount_cgroup2():
    with open("/proc/self/mountinfo") as text:
        mounts = [line.split()[4] for line in text if " - cgroup2 " in line]
    for mount in reversed(mounts):
        subprocess.run(["umount", mount], check=True)


def main():
    if INSIDE not in os.environ:
        os.environ[INSIDE] = "1"
        os.execvp("unshare", ["unshare", "--mount", "--propagation", "private", sys.executable,
                              *sys.argv])
    unmount_cgroup2()
    with Lab(sys.argv[1]) as lab:
        for attempt in range(2):
            done = lab("run", "--name", "x", "--node", "n2", "-d", "--", "sleep", "1000",
                       check=False)
            if done.returncode == 0 or "no cgroup v2 hierarchy is mounted" not in done.stderr:
                raise Failure("attempt %d: exit code %d, %s" % (attempt, done.returncode,
                                                                done.stderr))
            left = json.loads(lab("ps", "-a", "--json", check=False).stdout or
                              lab("ps", "--json").stdout)
            if left:
                raise Failure("attempt %d left %s" % (attempt, left))
    print("refused twice with the reason, nothing left")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Failure as problem:
        print("FAILED: %s" % problem)
        sys.exit(1)
