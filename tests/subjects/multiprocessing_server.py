#!/usr/bin/env python3
"""An HTTP service on python's multiprocessing: workers that are asked by queues, count under locks in
shared memory, and share a block that they check.

  multiprocessing_server.py PORT [WORKERS]

Queues are pipes with semaphores, semaphores are mapped files whose name was removed, and so are arrays;
a shared block is named. An answer is made by a worker. Anything that is wrong ends the service.
"""
import http.server
import multiprocessing
import os
import socket
import sys
import threading
from multiprocessing import shared_memory

BODY = "".join("line %d by a worker\n" % i for i in range(40)).encode()
CELLS = 4096


def fail(what):
    sys.stderr.write("multiprocessing_server: %s\n" % what)
    sys.stderr.flush()
    os.killpg(0, 9)


def work(number, jobs, answers, cells, total, name):
    block = shared_memory.SharedMemory(name=name)
    try:
        count = 0
        while True:
            job = jobs.get()
            count += 1
            with cells.get_lock():
                at = job % CELLS
                before = sum(cells[:16])
                cells[at] += 1
                if sum(cells[:16]) - before != (1 if at < 16 else 0):
                    fail("somebody counts without the lock")
            with total.get_lock():
                total.value += 1
            if bytes(block.buf[:8]) != b"the same":
                fail("the shared block is %r" % bytes(block.buf[:8]))
            answers[job % len(answers)].put((job, BODY))
    except BaseException as error:  # noqa: B902
        fail("worker %d: %r" % (number, error))


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    address_family = socket.AF_INET
    request_queue_size = 64


def main():
    workers = int(sys.argv[2]) if len(sys.argv) > 2 else 3
    jobs = multiprocessing.Queue()
    answers = [multiprocessing.SimpleQueue() for _ in range(8)]
    cells = multiprocessing.Array("q", CELLS)
    total = multiprocessing.Value("q", 0)
    block = shared_memory.SharedMemory(create=True, size=1 << 20)
    block.buf[:8] = b"the same"
    for number in range(workers):
        multiprocessing.Process(target=work, daemon=True, args=(
            number, jobs, answers, cells, total, block.name)).start()
    slots = [threading.Lock() for _ in answers]
    lock, state = threading.Lock(), {"next": 0}

    def ask():
        with lock:
            state["next"] += 1
            number = state["next"]
        slot = number % len(answers)
        with slots[slot]:
            jobs.put(number)
            got, body = answers[slot].get()
        if got != number:
            fail("asked for %d, got %d" % (number, got))
        return body

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = 1 << 16

        def do_GET(self):
            body = ask()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
            self.wfile.flush()

        def log_message(self, *_):
            pass

    def watch():
        while True:
            threading.Event().wait(0.2)
            if any(not child.is_alive() for child in multiprocessing.active_children()):
                fail("a worker has ended")
    threading.Thread(target=watch, daemon=True).start()
    server = Server(("0.0.0.0", int(sys.argv[1])), Handler)
    print("ready", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
