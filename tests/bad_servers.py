"""Servers on loopback that do what real ones do on their worst days."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator


def _hang(connection: socket.socket) -> None:
    """Accepts and never answers."""
    connection.recv(65536)
    time.sleep(60)


def _drip(connection: socket.socket) -> None:
    """A byte a moment: never silent for long, never done."""
    connection.recv(65536)
    connection.sendall(b"HTTP/1.1 200 OK\r\nX-Long: ")
    while True:
        connection.sendall(b"x")
        time.sleep(0.05)


def _close(connection: socket.socket) -> None:
    """Hangs up."""


def _reset(connection: socket.socket) -> None:
    """Hangs up rudely."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")


def _garbage(connection: socket.socket) -> None:
    """Speaks something else, as a TLS port does to plain HTTP."""
    connection.recv(65536)
    connection.sendall(b"\x15\x03\x01\x00\x02\x02\x46" * 20)


def _broken(connection: socket.socket) -> None:
    """Answers its health check, and 500 to all else."""
    asked = connection.recv(65536)
    status = b"200 OK" if b"/health" in asked else b"500 Internal Server Error"
    connection.sendall(b"HTTP/1.1 " + status + b"\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")


def _later(connection: socket.socket) -> None:
    """Answers its health check, and says to all else: come again in an hour."""
    asked = connection.recv(65536)
    status = b"200 OK" if b"/health" in asked else b"429 Too Many Requests\r\nRetry-After: 3600"
    connection.sendall(b"HTTP/1.1 " + status + b"\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")


def _lame(connection: socket.socket) -> None:
    """Answers its health check, and nothing else."""
    if b"/health" in connection.recv(65536):
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
    else:
        time.sleep(60)


BAD = {
    "hang": _hang, "drip": _drip, "close": _close, "reset": _reset, "garbage": _garbage, "broken": _broken,
    "later": _later, "lame": _lame,
}  # fmt: skip


@contextlib.contextmanager
def bad_server(how: str) -> Iterator[str]:
    """The URL of one of them, while the block runs."""
    listening = socket.create_server(("127.0.0.1", 0))

    def one(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            BAD[how](connection)

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=one, args=(listening.accept()[0],), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    with listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


class Tap:
    """A way to a real server, which can be told to let nothing through any more: everybody then waits."""

    def __init__(self, port: int) -> None:
        self.behind, self.shut = port, threading.Event()
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listening.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, far = self.listening.accept()[0], socket.create_connection(("127.0.0.1", self.behind))
                for one, other in ((near, far), (far, near)):
                    threading.Thread(target=self._pour, args=(one, other), daemon=True).start()

    def _pour(self, one: socket.socket, other: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while content := one.recv(65536):
                while self.shut.is_set():
                    time.sleep(0.1)
                other.sendall(content)
            other.shutdown(socket.SHUT_WR)


if __name__ == "__main__":
    import sys

    with bad_server(sys.argv[1]) as url:
        print(url, flush=True)
        time.sleep(3600)
