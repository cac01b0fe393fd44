"""How long does the program stand still in the rounds, prepare and withdrawal included?

A 1 GiB service that dirties 1,000 pages a second starts to move with a limited rate and is
cancelled after two seconds, before any freeze: the client's longest gap until it is cancelled and
cleaned up, over the longest gap in as long a time without a move.
"""

import signal
import subprocess
import time

import common


def run(lab, quick):
    name = "stall"
    address = common.memory_server(lab, name, 1024, dirty=1000)
    client = lab.pulse("echo", address, common.PORT)
    time.sleep(1)
    moving, idle = [], []
    with common.Warmth(512) as memory:
        common.wait_until_the_host_is_quiet()
        for _ in range(4 if quick else common.MOVES):
            memory.hold()
            client.mark()
            begin = time.monotonic()
            # Compressed it would be there before it is cancelled.
            move = subprocess.Popen([lab.godwit, "migrate", name, "n2", "--bandwidth", "100MiB",
                                     "--compress", "none", "-q"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            time.sleep(2)
            move.send_signal(signal.SIGINT)
            move.wait(30)
            time.sleep(0.2)
            moving.append(client.mark()["longest_gap_us"])
            took = time.monotonic() - begin
            if lab.inspect(name)["node"] != "n1":
                raise common.godwit_lab.Failure("it was to stay on n1")
            memory.hold()
            client.mark()
            time.sleep(took)
            idle.append(client.mark()["longest_gap_us"])
    client.finish()
    lab("rm", "-f", name)
    over = common.median(moving) - common.median(idle)
    return ("Stall in the rounds, 1 GiB", ["what", "goal (at least), ms", "measured, ms"], [
        ["longest gap while it moves, over undisturbed", "1 (3)",
         "%.2f (moving %s, undisturbed %s)" % (over / 1000, common.spread(moving, 1000),
                                               common.spread(idle, 1000))]])
