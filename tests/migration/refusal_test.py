#!/usr/bin/env python3
"""What cannot move is refused by name, in the dry run and in a move, and goes on unharmed.

  refusal_test.py build/godwit
"""
import os
import sys
import tempfile

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
import godwit_lab  # noqa: E402
from godwit_lab import Failure  # noqa: E402

COUNT = 'i=0; while :; do i=$((i+1)); echo $i > /tmp/alive; sleep 0.02; done'
# A program that does something and stays.
HOLD = ('python3 -c "import ctypes, fcntl, os, time; {}; open(\'/tmp/held\', \'w\'); '
        'time.sleep(1e5)" & until test -e /tmp/held; do sleep 0.01; done')
# By name: what it does first, options of `run`, the codes that it is refused with. {shared} is a
# folder on this machine.
CASES = {
    "locks": ("exec 9>>{shared}/file; flock 9", ["--bind", "{shared}"], ["fd.lock"]),
    "fanotify": (HOLD.format("ctypes.CDLL(None).fanotify_init(0, 0)"), [], ["fd.unknown"]),
    # io_setup(2), of 300 requests, and the second page of its ring unmapped.
    "aio": (HOLD.format("[c := ctypes.c_ulong(0), l := ctypes.CDLL(None), l.syscall(206, 300, "
                        "ctypes.byref(c)), l.munmap(ctypes.c_void_p(c.value + 4096), 4096)]"), [],
            ["aio.ring"]),
    # io_uring_setup(2), of 8 entries, with a thread of the kernel (IORING_SETUP_SQPOLL).
    "uring": (HOLD.format("[p := (ctypes.c_uint * 30)(0, 0, 2), setattr(time, 'kept', "
                          "ctypes.CDLL(None).syscall(425, 8, p))]"), [], ["io_uring.sqpoll"]),
    # F_NOTIFY makes its process the owner of the folder's signals.
    "dnotify": (HOLD.format("fcntl.fcntl(os.open('/etc', os.O_RDONLY), fcntl.F_NOTIFY, "
                            "fcntl.DN_CREATE | fcntl.DN_MULTISHOT)"), [], ["fd.async"]),
    # SIGEV_SIGNAL, SIGURG: struct sigevent is a value of 8 bytes, the signal, how.
    "queue": (HOLD.format("(r := ctypes.CDLL('librt.so.1')) and r.mq_notify("
                          "r.mq_open(b'/q', os.O_CREAT, 0o600, None), (ctypes.c_int * 16)(0, 0, 23, 0))"),
              [], ["mqueue.state", "mqueue.state"]),
    # getppid(2) asks a listener, the others are let through: four instructions of eight bytes.
    "listener": (HOLD.format("[c := (ctypes.c_ulonglong * 4)(0x20, 0x6e01000015, 0x7fc0000000000006, "
                             "0x7fff000000000006), f := (ctypes.c_ulonglong * 2)(4, "
                             "ctypes.addressof(c)), ctypes.CDLL(None).syscall(317, 1, 0, f)]"), [],
                 ["seccomp.notify"]),
    "unnamed": (HOLD.format("[os.mkdir('/tmp/w'), i := ctypes.CDLL(None).inotify_init(), "
                            "ctypes.CDLL(None).inotify_add_watch(i, b'/tmp/w', 2), "
                            "os.open('/tmp/w', os.O_RDONLY), os.rmdir('/tmp/w')]"), [],
                ["inotify.unnamed", "fd.deleted"]),
}


def alive(lab, name):
    def count():
        text = lab("exec", name, "--", "cat", "/tmp/alive").stdout.strip()
        return int(text) if text.isdigit() else 0
    before = count()
    godwit_lab.wait_for("%s to go on" % name, lambda: count() > before)


def refused(lab, name, codes, *options):
    seen = lab.migrate(name, "n2", *options)
    found = [each["code"] for each in seen["refusals"]]
    if seen["outcome"] != "refused" or found != codes:
        raise Failure("%s %s: %s" % (name, options, seen))
    for each in seen["refusals"]:
        if not (each["object"] and each["reason"] and each["way_out"]):
            raise Failure("%s: a refusal without an explanation: %s" % (name, each))
    return seen["refusals"][0]


# An epoll set that is under way stays there until it gets SIGUSR1; then what comes out is used.
UNDER_WAY = """
import os, select, signal, socket, time
one, other = socket.socketpair()
read, write = os.pipe()
watch = select.epoll()
watch.register(read, select.EPOLLIN)
socket.send_fds(one, [b"here"], [watch.fileno()])
watch.close()
def take(*_):
    word, fds, _, _ = socket.recv_fds(other, 10, 4)
    os.write(write, b"x")
    print(word.decode(), select.epoll.fromfd(fds[0]).poll(1) == [(read, select.EPOLLIN)], flush=True)
signal.signal(signal.SIGUSR1, take)
print("ready", flush=True)
while True:
    time.sleep(0.02)
"""


def under_way(lab):
    """It needs somebody who has it open, and may be so in a moment: tried, and rolled back."""
    lab("run", "--name", "rights", "--node", "n1", "-d", "--", "/usr/bin/python3", "-c", UNDER_WAY)
    godwit_lab.wait_for("it to be ready", lambda: "ready" in lab("logs", "rights").stdout)
    seen = lab.migrate("rights", "n2")
    if seen["outcome"] != "rolled_back" or "SCM_RIGHTS" not in seen["error"] or "link" in seen["error"]:
        raise Failure("a descriptor under way: %s" % seen)
    lab("signal", "rights", "USR1")
    godwit_lab.wait_for("the descriptor", lambda: "here True" in lab("logs", "rights").stdout)
    lab.move("rights", "n2")
    lab("rm", "-f", "rights")
    print("rights: %s" % seen["error"])


def main():
    with tempfile.TemporaryDirectory(prefix="godwit-test-") as shared, \
            godwit_lab.Lab(sys.argv[1]) as lab:
        for name, (script, options, codes) in CASES.items():
            options = [each.format(shared=shared) for each in options]
            lab("run", "--name", name, "--node", "n1", "-d", *options, "--", "/bin/sh", "-c",
                script.format(shared=shared) + "; " + COUNT)
            godwit_lab.wait_for("%s to be ready" % name, lambda: lab(
                "exec", name, "--", "test", "-s", "/tmp/alive", check=False).returncode == 0)
            first = refused(lab, name, codes, "--dry-run")
            refused(lab, name, codes)
            alive(lab, name)
            if lab.inspect(name)["node"] != "n1":
                raise Failure("%s is not where it was" % name)
            lab("rm", "-f", name)
            print("%s: %s: %s" % (name, first["code"], first["reason"]), flush=True)
        under_way(lab)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Failure as failure:
        print("refusal_test: %s" % failure, file=sys.stderr)
        sys.exit(1)
