"""A watch of every socket at which the product's processes take connections, for as long as something goes on. Linux alone."""

import os
import threading
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

import psutil

EVERY = 0.05  # seconds between two looks
# /proc/net's tables, and the state of a socket there that takes connections: it listens; of datagrams, it has no peer
TABLES = {"tcp": "0A", "tcp6": "0A", "udp": "07", "udp6": "07"}
ACCEPTS = 0x10000  # flag of a listening socket in /proc/net/unix
ENDED = ("(a process that had ended)",)
Place = tuple[str, str, int]


@dataclass(frozen=True)
class Listener:
    """A socket that takes connections.

    kind: tcp, udp or unix. address: where; of a unix socket its path, or a name that begins with @ and has no file.
    port: 0 of a unix socket. command: of the process that has it, arguments included. during: what went on (Watch.during).
    """

    during: str
    kind: str
    address: str
    port: int
    command: tuple[str, ...]

    @property
    def beyond(self) -> bool:
        """Whether another machine reaches it, or through a unix socket without a file every user of this one."""
        if self.kind == "unix":
            return self.address.startswith("@")
        found = ip_address(self.address)
        mapped = found.ipv4_mapped if isinstance(found, IPv6Address) else None
        return not (mapped or found).is_loopback

    def __str__(self) -> str:
        port = f" port {self.port}" if self.port else ""
        return f"{self.during}: {self.kind} {self.address}{port}: {' '.join(self.command)}"


@dataclass
class Watch:
    """Look every 50 ms at all sockets of this machine, and keep those where the product's processes take connections.

    The product's processes are this one, all that descend from it, and all that have this IGPO_HOME in their environment:
    servers, worker, flows and training processes. A new socket of this user's that is reached from elsewhere counts too when its
    process ended before it could be told. What took connections before the watch is left out.

    home: of the laboratory. during: what goes on, which each thing found is told with. found: what was seen. looks: how often.
    """

    home: Path
    during: str = ""
    found: set[Listener] = field(default_factory=set)
    looks: int = 0

    def __enter__(self) -> "Watch":
        self._known = set(listening())
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    @property
    def beyond(self) -> list[str]:
        """Those that are reached from elsewhere, in words."""
        return sorted(str(listener) for listener in self.found if listener.beyond)

    def _look(self) -> None:
        last = False
        while not last:
            last = self._over.wait(EVERY)  # and once more after the end
            now = listening()
            new = now.keys() - self._known
            owners = owners_of(new) if new else {}
            for inode in new:
                kind, address, port = now[inode]
                command = self._command(owners.get(inode, []))
                if command is None:
                    continue
                listener = Listener(self.during, kind, address, port, command)
                # without an owner it may be another program's: /proc/net/unix names no user, and loopback harms nobody
                if command != ENDED or (listener.beyond and kind != "unix"):
                    self.found.add(listener)
            self._known |= new
            self.looks += 1

    def _command(self, owners: list[int]) -> tuple[str, ...] | None:
        """The command of the first of our processes that have a socket; None where only others have it."""
        known = 0
        for number in owners:
            try:
                process = psutil.Process(number)
                family = {number, *(parent.pid for parent in process.parents())}
                if os.getpid() in family or process.environ().get("IGPO_HOME") == str(self.home):
                    return tuple(process.cmdline())
                known += 1
            except psutil.NoSuchProcess:
                continue
        return None if known else ENDED


def listening() -> dict[str, Place]:
    """(kind, address, port) of the sockets of this machine that take connections, by inode: this user's, and unix ones."""
    found: dict[str, Place] = {}
    for table, state in TABLES.items():
        for line in _lines(table):
            parts = line.split()
            if parts[3] == state and int(parts[7]) == os.getuid():
                address, _, port = parts[1].partition(":")
                found[parts[9]] = (table.removesuffix("6"), _address(address), int(port, 16))
    for line in _lines("unix"):
        parts = line.split(maxsplit=7)
        if len(parts) == 8 and int(parts[3], 16) & ACCEPTS:
            found[parts[6]] = ("unix", parts[7], 0)
    return found


def _lines(table: str) -> list[str]:
    path = Path("/proc/net") / table
    return path.read_text(errors="replace").splitlines()[1:] if path.exists() else []  # no IPv6 on some machines


def _address(text: str) -> str:
    """The kernel's form: words of four bytes, each with its lowest byte first."""
    packed = b"".join(bytes.fromhex(text[i : i + 8])[::-1] for i in range(0, len(text), 8))
    return str(IPv4Address(packed) if len(packed) == 4 else IPv6Address(packed))


def owners_of(inodes: Iterable[str]) -> dict[str, list[int]]:
    """The numbers of the processes that have each of these sockets."""
    wanted = {f"socket:[{inode}]": inode for inode in inodes}
    found: dict[str, list[int]] = {}
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # ended meanwhile, or another user's
            for entry in os.scandir(process / "fd"):
                with suppress(OSError):  # closed meanwhile
                    inode = wanted.get(os.readlink(entry.path))
                    if inode is not None:
                        found.setdefault(inode, []).append(int(process.name))
    return found
