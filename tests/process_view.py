"""What /proc shows of the processes of a service, with pids as the service sees them.

tree() looks from outside. details() looks from inside of the service, where this file runs itself:
what a program could read there about itself and its neighbours, but for the exceptions listed below.
It is to be the same before and after a move.
"""
import json
import os
import re
import sys

# Fields of status that a move changes on purpose or that change by themselves, and why.
EXCEPT = {
    "State": "threads run and sleep",
    "SigQ": "counted by user on the whole machine",
    "SigPnd": "signals come and go; the subject checks what is pending for good",
    "ShdPnd": "the same",
    "SigBlk": "blocked for a moment by a handler; the subject checks the masks",
    "FDSize": "room in the table of descriptors, which the kernel never gives back",
    "VmPeak": "high-water marks start anew", "VmHWM": "the same",
    "VmSize": "the sum of the mappings, which are compared one by one",
    "VmRSS": "what was only read comes when it is read again",
    "RssAnon": "the same", "RssFile": "the same", "RssShmem": "the same",
    "VmPTE": "page tables follow the pages", "VmSwap": "the machine's",
    "voluntary_ctxt_switches": "start anew", "nonvoluntary_ctxt_switches": "the same",
}
# A process that has ended and was not waited for is who it was, not what it had set for itself.
EXCEPT_ENDED = ("Cpus_allowed", "Cpus_allowed_list", "NoNewPrivs", "SigCgt", "SigIgn", "nice",
                "priority")
# proc_pid_stat(5): what is neither in status nor changes by itself. Left out: start time and CPU
# times, faults, sizes, where it sleeps, the CPU that it ran on.
STAT = {4: "ppid", 5: "pgrp", 6: "session", 7: "tty_nr", 18: "priority", 19: "nice", 20: "threads",
        25: "rsslim", 26: "startcode", 27: "endcode", 28: "startstack", 38: "exit_signal",
        40: "rt_priority", 41: "policy", 45: "start_data", 46: "end_data", 47: "start_brk",
        48: "arg_start", 49: "arg_end", 50: "env_start", 51: "env_end", 52: "exit_code"}
# smaps' VmFlags: uw, um: tracked for the move; sd: not tracked; ac: counts as committed memory (stays
# on what was writable once).
PASSING_FLAGS = {"uw", "um", "sd", "ac"}
# fdinfo: numbers of this machine, and what goes on by itself.
PASSING_FDINFO = {"mnt_id", "ino", "it_value", "ticks", "eventfd-id", "eventfd-count"}
# The service's standard streams are opened anew, which sets this (open(2)); pipe(2) does not.
O_LARGEFILE = 0o100000
# A removed file whose name is taken (the subject checks the one whose name is free).
REMOVED = re.compile(r"/(#\d+|state-removed-\w+)(?= \(deleted\)$)")
# EPOLLERR | EPOLLHUP: epoll_ctl(2) adds them, a one-shot entry that has fired has lost them.
EPOLL_ALWAYS = 0x18


def _read(path):
    with open(path, "rb") as file:
        return file.read().decode("latin-1")


def _status(pid):
    with open("/proc/%s/status" % pid, errors="backslashreplace") as text:
        return dict(line.rstrip("\n").split(":\t", 1) for line in text if ":\t" in line)


def host_pids(main):
    """Pids on this machine of all processes in main's pid namespace, by their pid inside."""
    namespace = os.readlink("/proc/%d/ns/pid" % main)
    found = {}
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            if os.readlink("/proc/%s/ns/pid" % entry) == namespace:
                found[int(_status(entry)["NSpid"].split()[-1])] = int(entry)
        except OSError:
            continue
    return found


def tree(main):
    """{pid: (name, parent, group, session, (threads))} without the capsule's own init (1)."""
    pids = host_pids(main)
    inside = {host: own for own, host in pids.items()}
    result = {}
    for own, host in sorted(pids.items()):
        if own == 1:
            continue
        try:
            status = _status(host)
            threads = tuple(sorted(int(_status("%d/task/%s" % (host, t))["NSpid"].split()[-1])
                                   for t in os.listdir("/proc/%d/task" % host)))
        except OSError:
            continue
        result[own] = (status["Name"], inside.get(int(status["PPid"]), 0),
                       int(status["NSpgid"].split()[-1]), int(status["NSsid"].split()[-1]), threads)
    return result


def _stat(folder):
    text = _read(folder + "/stat")
    fields = text[text.rindex(")") + 2:].split()  # from field 3 on
    return {name: fields[number - 3] for number, name in STAT.items()}


def _worker(folder):
    """Of the kernel's, for requests of io_uring: PF_IO_WORKER, PF_USER_WORKER (linux/sched.h)."""
    text = _read(folder + "/stat")
    return int(text[text.rindex(")") + 2:].split()[6]) & 0x4010 != 0


def _task(folder):
    status = {k: v for k, v in _status(folder[len("/proc/"):]).items() if k not in EXCEPT}
    return {"status": status, "stat": _stat(folder), "comm": _read(folder + "/comm")}


def _ended(pid):
    whole = _task("/proc/%s" % pid)
    for part in ("status", "stat"):
        whole[part] = {k: v for k, v in whole[part].items() if k not in EXCEPT_ENDED}
    return whole


def _mappings(pid):
    """Neighbours that show the same are one: the kernel merges them or not, as it comes."""
    result = []
    for line in _read("/proc/%s/smaps" % pid).splitlines():
        area = re.match(r"([0-9a-f]+)-([0-9a-f]+) (\S+) ([0-9a-f]+) \S+ (\d+) *(.*)", line)
        if area:
            start, end, offset = (int(area.group(i), 16) for i in (1, 2, 4))
            # The inode says whether there is a file; its number is the machine's.
            last = [start, end, area.group(3), offset if area.group(5) != "0" else 0,
                    REMOVED.sub("/#", area.group(6))]
        elif line.startswith("VmFlags:"):
            last.append(" ".join(f for f in line.split()[1:] if f not in PASSING_FLAGS))
            before = result[-1] if result else None
            follows = before and before[1] == last[0] and before[2] == last[2] and \
                before[4:] == last[4:] and last[3] == (
                    before[3] + before[1] - before[0] if last[3] or before[3] else 0)
            if follows:
                before[1] = last[1]
            else:
                result.append(last)
    return ["%x-%x %s %x %s [%s]" % tuple(one) for one in result]


def _descriptors(pid, inodes):
    """Sockets and pipes by the order in which they are met: who shares which stays."""
    result = {}
    for fd in sorted(os.listdir("/proc/%s/fd" % pid), key=int):
        link = os.readlink("/proc/%s/fd/%s" % (pid, fd))
        kind = re.match(r"(socket|pipe):\[\d+\]$", link)
        if kind:
            link = "%s %d" % (kind.group(1), inodes.setdefault(link, len(inodes)))
        info = [_fdinfo(line) for line in _read("/proc/%s/fdinfo/%s" % (pid, fd)).splitlines()
                if line.split(":")[0].strip() not in PASSING_FDINFO]
        result[fd] = [link] + sorted(info)
    return result


def _fdinfo(line):
    flags = re.match(r"flags:\s*([0-7]+)$", line)
    if flags:
        return "flags: %o" % (int(flags.group(1), 8) & ~O_LARGEFILE)
    if line.startswith("lock:"):  # the file's device and inode are the machine's
        line = re.sub(r" [0-9a-f]+:[0-9a-f]+:\d+ ", " ", line)
    if line.startswith("inotify"):  # a file's handle is its file system's
        line = re.sub(r"fhandle-bytes.*", "", line)
    line = re.sub(r"\b(ino|sdev):\s*[0-9a-f]+", "", line).strip()
    return re.sub(r"\bevents:\s*([0-9a-f]+)",
                  lambda m: "events: %x" % (int(m.group(1), 16) | EPOLL_ALWAYS), line)


def _process(pid, inodes):
    folder = "/proc/%s" % pid
    texts = ("limits", "cmdline", "environ", "auxv", "personality", "oom_score_adj",
             "coredump_filter", "timers", "timerslack_ns", "cgroup")
    seen = {name: _read("%s/%s" % (folder, name)) for name in texts}
    seen.update({name: os.readlink("%s/%s" % (folder, name)) for name in ("cwd", "root", "exe")})
    seen["mappings"] = _mappings(pid)
    seen["descriptors"] = _descriptors(pid, inodes)
    own = [tid for tid in os.listdir(folder + "/task") if not _worker("%s/task/%s" % (folder, tid))]
    seen["tasks"] = {tid: _task("%s/task/%s" % (folder, tid)) for tid in own}
    for task in seen["tasks"].values():
        task["status"]["Threads"] = task["stat"]["threads"] = str(len(own))
    return seen


def _is_alive(pid):
    return _status(pid)["State"][0] not in "ZX"


def _inside():
    """Of every process but the capsule's init and this one."""
    inodes = {}
    for pid in sorted((p for p in os.listdir("/proc") if p.isdigit()), key=int):
        if pid in ("1", str(os.getpid())):
            continue
        if _is_alive(pid):
            yield pid, _process(pid, inodes)
        else:
            yield pid, _ended(pid)


def details(lab, name):
    """What the service's own /proc shows of its processes, as {"pid path": value}."""
    shown = json.loads(lab("exec", name, "--", "/usr/bin/python3", os.path.abspath(__file__)).stdout)
    flat = {}

    def walk(path, value):
        if isinstance(value, dict):
            for key, below in value.items():
                walk("%s %s" % (path, key), below)
        else:
            flat[path.strip()] = value
    walk("", shown)
    return flat


def differences(before, after):
    """A line for each value that is not the same in both."""
    lines = []
    for path in sorted(set(before) | set(after)):
        old, new = before.get(path), after.get(path)
        if isinstance(old, list) and isinstance(new, list):
            lines += ["%s: gone: %s" % (path, one) for one in old if one not in new]
            lines += ["%s: new: %s" % (path, one) for one in new if one not in old]
        elif old != new:
            lines.append("%s: %r, was %r" % (path, new, old))
    return lines


if __name__ == "__main__":
    json.dump(dict(_inside()), sys.stdout)
