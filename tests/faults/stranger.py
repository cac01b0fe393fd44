#!/usr/bin/env python3
"""Somebody who is no node of the cluster at a mover's port: stranger.py HOST PORT

Opens connections that say nothing, nonsense, and half or all of a greeting without TLS, and one with
TLS that shows no certificate and greets with a wrong proof. Prints "connected", stays until a line
comes, and fails if anybody told it anything but that it may go: a TLS alert.
"""

import os
import socket
import ssl
import sys

MAGIC = b"GWPEER1\0"
ALERT = b"\x15\x03"


def connect():
    return socket.create_connection((sys.argv[1], int(sys.argv[2])), 5)


silent = [connect() for _ in range(20)]
half = connect()
half.sendall(MAGIC[:5])
greeted = connect()
greeted.sendall(MAGIC + b"\1" + os.urandom(32))
nonsense = connect()
nonsense.sendall(b"GET / HTTP/1.0\r\n\r\n" * 10)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
context.check_hostname = False
context.verify_mode = ssl.CERT_NONE
# In TLS 1.3 the end that connects is done before the other one looks for its certificate.
forger = context.wrap_socket(connect())
try:
    forger.sendall(MAGIC + b"\1" + os.urandom(32))
    forger.sendall(os.urandom(32))
except OSError:
    pass  # told to go already
print("connected", flush=True)
sys.stdin.readline()
for name, peer in [("greeted", greeted), ("nonsense", nonsense), ("half", half), ("forger", forger)]:
    peer.settimeout(10)
    try:
        said = peer.recv(1 << 16)
    except (ConnectionError, ssl.SSLError):
        continue
    if said and (peer is forger or not said.startswith(ALERT) or len(said) > 7):
        sys.exit("%s was told %r" % (name, said))
