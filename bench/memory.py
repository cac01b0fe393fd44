"""How much memory do we need beyond the service's own? A 1 GiB service; peak of each mover.

Anonymous and shared memory resident in the mover processes (RssAnon + RssShmem of
/proc/PID/status), sampled every 5 ms while the service moves; file pages are the binary's.
"""

import glob
import threading
import time

import common


def movers():
    found = {}
    for path in glob.glob("/proc/[0-9]*/cmdline"):
        try:
            with open(path, "rb") as text:
                words = text.read().split(b"\0")
            if len(words) < 2 or words[1] != b"mover":
                continue
            with open(path.replace("cmdline", "status")) as text:
                fields = dict(line.split(":", 1) for line in text if ":" in line)
            found[path] = sum(int(fields[k].split()[0]) for k in ("RssAnon", "RssShmem"))
        except (OSError, KeyError):
            continue
    return found


def run(lab, quick):
    name = "memory"
    common.memory_server(lab, name, 1024, dirty=1000)
    peaks = {}
    stop = threading.Event()

    def sample():
        while not stop.is_set():
            for path, kib in movers().items():
                peaks[path] = max(peaks.get(path, 0), kib)
            time.sleep(0.005)

    sampler = threading.Thread(target=sample)
    sampler.start()
    try:
        for i in range(4):
            lab.move(name, "n2" if i % 2 == 0 else "n1")
    finally:
        stop.set()
        sampler.join()
    lab("rm", "-f", name)
    return ("Memory beyond the service's own", ["what", "goal (at least), MiB", "measured, MiB"],
            [["peak of one mover, 1 GiB service", "64 (128)",
              "%.1f" % (max(peaks.values()) / 1024 if peaks else float("nan"))]])
