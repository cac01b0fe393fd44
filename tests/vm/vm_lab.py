"""A lab with a libvirt daemon on each node, and the test guest in it."""
import contextlib
import os
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
import guest  # noqa: E402
from godwit_lab import Failure, Lab, lab_name, run, wait_for  # noqa: E402

# Outside of what the lab gives to services.
ADDRESS = "10.77.200.%d"
ECHO, COMMANDS = 7000, 7001


def expect_libvirt():
    for program in ("/usr/sbin/libvirtd", "/usr/bin/qemu-system-x86_64", "/bin/busybox",
                    "/usr/bin/cpio"):
        if not os.path.exists(program):
            sys.exit("%s is not installed: scripts/install-deps.sh test" % program)


class Agent:
    """The guest's port for commands, on one connection from the client host."""

    SCRIPT = ("import socket,sys\n"
              "s=socket.create_connection((sys.argv[1],int(sys.argv[2])),10)\n"
              "s.settimeout(60)\n"
              "for line in sys.stdin:\n"
              "  s.sendall(line.encode()); print(s.recv(100).decode().strip(),flush=True)\n")

    def __init__(self, lab, address):
        self.process = subprocess.Popen(
            lab.client_command("python3", "-c", self.SCRIPT, address, COMMANDS),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)

    def ask(self, line):
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline().strip()
        if not answer:
            raise Failure("the guest does not answer to %s" % line)
        return answer

    def check(self):
        """Passes over its memory or disk, all right so far."""
        answer = self.ask("check")
        if not answer.startswith("ok"):
            raise Failure("the guest's memory or disk was changed: %s" % answer)
        return int(answer.split()[1])

    def close(self):
        # It may have ended with its guest, or wait for an answer.
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        self.process.kill()
        self.process.wait(10)


class VmLab(Lab):
    def __init__(self, godwit, **options):
        super().__init__(godwit, **options)
        self.arguments.append("--vm")

    def uri(self, node):
        return "qemu+unix:///system?socket=/run/godwit/%s/%s/libvirt/run/libvirt-sock" % (
            lab_name(), node)

    def virsh(self, node, *command, check=True, timeout=60):
        return run("virsh", "-c", self.uri(node), *command, check=check, timeout=timeout)

    def domains(self, node):
        return self.virsh(node, "list", "--all", "--name").stdout.split()

    # As libvirt sees it, on each node another one.
    DISKS = "/var/lib/libvirt/disks"

    def disk_folder(self, node):
        """The same as the tests see it."""
        return "/var/lib/godwit/%s/%s/libvirt/disks" % (lab_name(), node)

    def make_disk(self, name, mib, node="n1", form="qcow2"):
        os.makedirs(self.disk_folder(node), exist_ok=True)
        run("qemu-img", "create", "-q", "-f", form,
            os.path.join(self.disk_folder(node), name), "%dM" % mib)
        return os.path.join(self.DISKS, name)

    def disks(self, node):
        folder = self.disk_folder(node)
        return sorted(os.listdir(folder)) if os.path.isdir(folder) else []

    def define(self, name, number=1, node="n1", **options):
        """A domain that is defined through Godwit; its address."""
        address = ADDRESS % number
        xml = guest.domain_xml(self.build, name, address + "/16",
                               "52:54:00:77:00:%02x" % number, **options)
        path = os.path.join("/run/godwit", lab_name(), name + ".xml")
        with open(path, "w") as text:
            text.write(xml)
        self("vm", "define", path, "--node", node, "--ip", address)
        return address

    def boot(self, name, number=1, **options):
        address = self.define(name, number, **options)
        self("vm", "start", name)
        self.wait_until_it_listens(name, address, ECHO, timeout=60)
        self.empty_balloon(name, **options)
        return address

    def empty_balloon(self, name, node="n1", memory_mib=256, **_):
        """libvirt has the balloon take what the test's emulator adds to its memory."""
        self.virsh(node, "qemu-monitor-command", name, "--hmp", "balloon %d" % (memory_mib + 1))
        wait_for("all of the memory", lambda: "actual %d\n" % (memory_mib * 1024 + 16) in
                 self.virsh(node, "dommemstat", name).stdout)

    def agent(self, address):
        agent = Agent(self, address)
        self.cleanup.callback(agent.close)
        return agent

    def state(self, name):
        return self.inspect(name)["state"]

    def expect_only_on(self, name, node, timeout=30):
        """The one place that has it, and nothing of the move is left in the other."""
        others = [n for n in ("n1", "n2") if n != node]
        wait_for("%s to be gone elsewhere" % name,
                 lambda: all(name not in self.domains(n) for n in others), timeout)
        if name not in self.domains(node):
            raise Failure("%s is not on %s" % (name, node))
        # Those are copied, if there are any.
        wait_for("no disks to be left behind", lambda: not any(map(self.disks, others)), timeout)
        for n in ("n1", "n2"):
            folder = "/run/godwit/%s/%s/libvirt/sockets" % (lab_name(), n)
            wait_for("no sockets in %s" % folder, lambda f=folder: not os.listdir(f), timeout)
