"""Holds memory and gives of it what others take: warm.py MIB. Ends with its input.

A virtual machine may give freed memory back to its host (free page reporting, a balloon). That
spoils figures twice: the next first touch of such a page costs 6-14 us instead of 0.3-1.8, and
while the host takes it, all virtual CPUs stand still together: 10-35 ms for 60-130 MiB, every 2 s
while there is more, whatever runs. So what a move will need is held here before it, and let go of
as it is taken (what was freed last is given out first, and little lies free for long); what the move
gave back is held again afterwards. More is held than what it needs: nearly all free blocks of 2 MiB,
since otherwise huge pages are made of those that the host took long ago (3-6 ms for one that
way, 0.4 for one that was held).

A line of input: hold as much as at first, then print a line.
"""

import mmap
import os
import select
import sys

HUGE_PAGE = 2 << 20
CHUNK = 4 * HUGE_PAGE
HUGE_ORDER = 9  # of /proc/buddyinfo
FEW_BLOCKS = 32
LEFT_FREE = 1 << 30  # for everybody else
AHEAD = 32 << 20  # more is free than when it was held: what is taken in 10 ms, at most
MADV_POPULATE_WRITE = 23  # Linux 5.14


def free_bytes():
    with open("/proc/meminfo") as text:
        text.readline()
        return int(text.readline().split()[1]) << 10


def huge_blocks():
    """Free blocks of 2 MiB. Those of the first zone are left to devices."""
    with open("/proc/buddyinfo") as text:
        zones = [line.split()[4:] for line in text if " DMA " not in line]
    return sum(int(count) << (order - HUGE_ORDER) for zone in zones
               for order, count in enumerate(zone) if order >= HUGE_ORDER)


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
            while huge_blocks() > FEW_BLOCKS and free_bytes() > LEFT_FREE:
                held.append(chunk())
            wanted = free_bytes() + AHEAD
            print("held", flush=True)
        for _ in range((wanted - free_bytes() + CHUNK - 1) // CHUNK):
            if held:
                held.pop().close()


if __name__ == "__main__":
    main()
