#!/usr/bin/env python3
"""An HTTP service that uses much of a system at once, and checks itself all the time.

  http_server.py PORT [WORKERS]

The parent and WORKERS forked children all accept on one listening socket. Each of them runs an
asyncio loop; an answer is made by a thread of a pool. Every child is joined with its parent by a
socket pair and a pipe: the parent sends numbered lines, the child answers them, both check the
order. Threads keep counters under locks and look at the clocks. A child that is forked and waited
for every second shows that processes come and go (not with --steady). Anything that is wrong is
printed and ends the service.
"""
import asyncio
import concurrent.futures
import os
import queue
import signal
import socket
import sys
import threading
import time

BODY = "".join("answer line %d\n" % i for i in range(50)).encode()
HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: keep-alive\r\n\r\n" % len(BODY)


def fail(what):
    sys.stderr.write("http_server: %s\n" % what)
    sys.stderr.flush()
    os.kill(0, signal.SIGKILL)


def checked(function):
    """A thread's function whose exceptions end the service."""
    def run(*arguments):
        try:
            function(*arguments)
        except BaseException as error:  # noqa: B902 (threads swallow all others)
            fail("%s: %r" % (function.__name__, error))
    return run


@checked
def watch_clocks():
    monotonic, count = time.monotonic(), 0
    while True:
        time.sleep(0.005)
        now = time.monotonic()
        if now < monotonic:
            fail("CLOCK_MONOTONIC went back by %s s" % (monotonic - now))
        monotonic, count = now, count + 1


@checked
def play_ball(mine, other, locked):
    """Two threads hand a number to each other through queues, and count under a lock."""
    while True:
        number = mine.get()
        with locked["lock"]:
            locked["count"] += 1
        time.sleep(0.001)
        other.put(number + 1)


def start_threads():
    threading.Thread(target=watch_clocks, daemon=True).start()
    first, second = queue.Queue(), queue.Queue()
    locked = {"lock": threading.Lock(), "count": 0}
    for mine, other in ((first, second), (second, first)):
        threading.Thread(target=play_ball, args=(mine, other, locked), daemon=True).start()
    first.put(0)


class Beat:
    """Tells that the loop's timers and its signal wake-up descriptor work."""

    def __init__(self, loop):
        self.loop, self.asked, self.alarms, self.late = loop, 0, 0, 0
        loop.add_signal_handler(signal.SIGUSR1, self.alarm)
        loop.call_later(0.05, self.ask)

    def alarm(self):
        self.alarms += 1

    def ask(self):
        # The thread that got it may be waiting for a page: late is not lost.
        if self.asked != self.alarms and self.late < 40:
            self.late += 1
            self.loop.call_later(0.05, self.ask)
            return
        if self.asked != self.alarms:
            fail("%d signals were sent, %d arrived" % (self.asked, self.alarms))
        self.late = 0
        self.asked += 1
        os.kill(os.getpid(), signal.SIGUSR1)
        self.loop.call_later(0.05, self.ask)


class Http(asyncio.Protocol):
    def __init__(self, pool):
        self.pool, self.unread = pool, b""

    def connection_made(self, transport):
        self.transport = transport
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def data_received(self, data):
        self.unread += data
        while b"\r\n\r\n" in self.unread:
            request, self.unread = self.unread.split(b"\r\n\r\n", 1)
            asyncio.ensure_future(self.answer(request))

    async def answer(self, request):
        body = await asyncio.get_running_loop().run_in_executor(self.pool, self.work, request)
        self.transport.write(HEAD + body)

    @staticmethod
    def work(request):
        if not request.startswith(b"GET "):
            fail("a request is damaged: %r" % request)
        return BODY


async def talk(reader, writer, first):
    """The same on both ends: lines with growing numbers go round."""
    number = 0
    if first:
        writer.write(b"0\n")
    while True:
        line = await reader.readline()
        if int(line) != number:
            fail("line %r instead of %d" % (line, number))
        await asyncio.sleep(0.001)
        number += 1
        writer.write(b"%d\n" % (number if first else number - 1))


async def read_beats(fd):
    """The parent's end of a pipe on which a child writes growing numbers."""
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(fd, "rb"))
    number = 0
    while True:
        line = await reader.readline()
        if int(line) != number:
            fail("beat %r instead of %d" % (line, number))
        number += 1


@checked
def write_beats(fd):
    number = 0
    while True:
        os.write(fd, b"%d\n" % number)
        number += 1
        time.sleep(0.003)


@checked
def fork_now_and_then():
    while True:
        time.sleep(1)
        child = os.fork()
        if child == 0:
            time.sleep(0.2)
            os._exit(7)
        _, status = os.waitpid(child, 0)
        if os.waitstatus_to_exitcode(status) != 7:
            fail("a child's status is %#x" % status)


async def serve(listener, pairs, beats):
    loop = asyncio.get_running_loop()
    Beat(loop)
    pool = concurrent.futures.ThreadPoolExecutor(4)
    for pair, first in pairs:
        reader, writer = await asyncio.open_connection(sock=pair)
        asyncio.ensure_future(guard(talk(reader, writer, first)))
    for fd in beats:
        asyncio.ensure_future(guard(read_beats(fd)))
    server = await loop.create_server(lambda: Http(pool), sock=listener)
    await server.serve_forever()


async def guard(what):
    try:
        await what
    except BaseException as error:  # noqa: B902
        fail("%r" % error)


def main():
    arguments = [a for a in sys.argv[1:] if not a.startswith("--")]
    workers = int(arguments[1]) if len(arguments) > 1 else 2
    listener = socket.create_server(("", int(arguments[0])), backlog=1024)
    listener.setblocking(False)
    ours, beats = [], []
    for _ in range(workers):
        here, there = socket.socketpair()
        read_end, write_end = os.pipe()
        if os.fork() == 0:
            here.close()
            os.close(read_end)
            start_threads()
            threading.Thread(target=write_beats, args=(write_end,), daemon=True).start()
            asyncio.run(serve(listener, [(there, False)], []))
            os._exit(0)
        there.close()
        os.close(write_end)
        ours.append((here, True))
        beats.append(read_end)
    start_threads()
    if "--steady" not in sys.argv:
        threading.Thread(target=fork_now_and_then, daemon=True).start()
    print("ready", flush=True)
    asyncio.run(serve(listener, ours, beats))


main()
