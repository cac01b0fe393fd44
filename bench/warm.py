"""Holds memory and gives of it what others take: warm.py MIB. Ends with its input.

A virtual machine may give freed memory back to its host (free page reporting, a balloon). That
spoils figures twice: the next first touch of such a page costs 6-14 us instead of 0.3-1.8, and
while the host takes it, all virtual CPUs stand still together: 10-35 ms for 60-130 MiB, every 2 s
while there is more, whatever runs. So what a move will need is held here before it, and let go of
as it is taken (what was freed last is given out first, and little lies free for long); what the move
gave back is held again afterwards.

A line of input: hold as much as at first, then print a line.
"""

import mmap
import os
import select
import sys

CHUNK = 8 << 20
AHEAD = 32 << 20  # more is free than when it was held: what is taken in 10 ms, at most
MADV_POPULATE_WRITE = 23  # Linux 5.14


def free_bytes():
    with open("/proc/meminfo") as text:
        text.readline()
        return int(text.readline().split()[1]) << 10


def chunk():
    memory = mmap.mmap(-1, CHUNK, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_HUGEPAGE)
    memory.madvise(MADV_POPULATE_WRITE)
    return memory


def main():
    os.nice(10)
    held = []
    wanted = 0
    while True:
        if select.select([sys.stdin], [], [], 0.006)[0]:
            if not sys.stdin.readline():
                return
            while len(held) < (int(sys.argv[1]) << 20) // CHUNK:
                held.append(chunk())
            wanted = free_bytes() + AHEAD
            print("held", flush=True)
        for _ in range((wanted - free_bytes() + CHUNK - 1) // CHUNK):
            if held:
                held.pop().close()


if __name__ == "__main__":
    main()
