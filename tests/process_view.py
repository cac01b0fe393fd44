"""What /proc shows of the processes of a service, with pids as the service sees them."""
import os


def _status(pid):
    with open("/proc/%s/status" % pid) as text:
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
