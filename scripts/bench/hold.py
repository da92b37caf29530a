"""Holds idle keep-alive connections: hold.py PORT COUNT.

Each has one request answered, then the line "held COUNT" is printed and all are silent. When stdin
ends, each sends another request; "alive N" says how many were answered. A process of its own, for
the connections count against its limit of open files, and not against the server's.
"""

import socket
import sys

REQUEST = b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
# One address has some 28,000 ports towards one server; these are also used by the load beside.
PER_ADDRESS = 4000
IP_BIND_ADDRESS_NO_PORT = 24


def connect(port, address):
    connection = socket.socket()
    connection.settimeout(20)
    # The port is chosen at connect, so that it need be free towards this server only.
    connection.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
    connection.bind((address, 0))
    connection.connect(("127.0.0.1", port))
    return connection


def answered(connection):
    try:
        connection.sendall(REQUEST)
        reply = connection.recv(4096)
        while b"\r\n\r\n" not in reply:
            if not (more := connection.recv(4096)):
                return False
            reply += more
        head, _, body = reply.partition(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
        while len(body) < length:
            if not (more := connection.recv(4096)):
                return False
            body += more
        return head.startswith(b"HTTP/1.1 200 ")
    except OSError:
        return False


def main():
    port, count = int(sys.argv[1]), int(sys.argv[2])
    connections, held = [], 0
    for number in range(count):
        try:
            connections.append(connect(port, f"127.0.0.{2 + number // PER_ADDRESS}"))
        except OSError as error:
            sys.exit(f"hold: connection {number + 1} to port {port}: {error}")
        held += answered(connections[-1])
    print("held", held, flush=True)
    sys.stdin.read()
    print("alive", sum(map(answered, connections)), flush=True)


main()
