#!/usr/bin/env python3
"""Somebody without the token at a mover's port: stranger.py HOST PORT

Opens connections that say nothing, nonsense, half of a greeting, and a whole greeting with a wrong
proof. Prints "connected", stays until a line comes, and fails if anybody told it anything but what
the handshake tells everybody (a nonce and a proof: 64 bytes).
"""

import os
import socket
import sys

MAGIC = b"GWPEER1\0"


def connect():
    return socket.create_connection((sys.argv[1], int(sys.argv[2])), 5)


silent = [connect() for _ in range(20)]
half = connect()
half.sendall(MAGIC[:5])
greeted = connect()
greeted.sendall(MAGIC + b"\1" + os.urandom(32))
nonsense = connect()
nonsense.sendall(b"GET / HTTP/1.0\r\n\r\n" * 10)
forger = connect()
forger.sendall(MAGIC + b"\1" + os.urandom(32))
proof = b""
while len(proof) < 64:
    part = forger.recv(64 - len(proof))
    if not part:
        sys.exit("the handshake ended after %d bytes" % len(proof))
    proof += part
forger.sendall(os.urandom(32))
print("connected", flush=True)
sys.stdin.readline()
for name, peer in [("forger", forger), ("nonsense", nonsense), ("half", half)]:
    peer.settimeout(10)
    try:
        said = peer.recv(1 << 16)
    except ConnectionError:
        continue
    if said:
        sys.exit("%s was told %r" % (name, said))
