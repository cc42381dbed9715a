"""The three files of a container that are about names: ``hosts``, ``hostname`` and ``resolv.conf``. Text in, text
out; and the writing.

The rules are docker's: a container on a network of the host's kind sees the host's files; one on the default bridge
gets the host's name servers without those that only the host can reach; one on a user-defined network asks the
engine's own server.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from ipaddress import ip_address
from pathlib import Path

EMBEDDED_SERVER = "127.0.0.11"
FALLBACK_SERVERS = ("8.8.8.8", "8.8.4.4")
_STUB_SERVER = "127.0.0.53"
_RESOLVED_FILE = Path("/run/systemd/resolve/resolv.conf")

_LOCAL_NAMES = (
    ("127.0.0.1", "localhost"),
    ("::1", "localhost ip6-localhost ip6-loopback"),
    ("fe00::", "ip6-localnet"),
    ("ff00::", "ip6-mcastprefix"),
    ("ff02::1", "ip6-allnodes"),
    ("ff02::2", "ip6-allrouters"),
)


def parse_extra_hosts(entries: Sequence[str], host_gateway: Sequence[str]) -> list[tuple[str, str]]:
    """``name:address`` (or ``name=address``) pairs as (address, name). Raises ``ValueError`` for a bad one.

    ``host-gateway`` as address stands for the host as containers see it.
    """
    found: list[tuple[str, str]] = []
    for entry in entries:
        separator = "=" if "=" in entry.partition(":")[0] else ":"
        name, _, address = entry.partition(separator)
        if not name or not address:
            raise ValueError(f'bad format for add-host: "{entry}"')
        if address == "host-gateway":
            if not host_gateway:
                raise ValueError("unable to derive the IP value for host-gateway")
            found += [(gateway, name) for gateway in host_gateway]
            continue
        address = address.removeprefix("[").removesuffix("]")
        try:
            ip_address(address)
        except ValueError as error:
            raise ValueError(f'invalid IP address in add-host: "{address}"') from error
        found.append((address, name))
    return found


def hosts_text(extra: Iterable[tuple[str, str]], own: Iterable[tuple[str, str]], *, has_ipv6: bool = True) -> str:
    """``/etc/hosts``: the local names, the added ones, then the container's own addresses with its names."""
    local = [entry for entry in _LOCAL_NAMES if has_ipv6 or ":" not in entry[0]]
    return "".join(f"{address}\t{names}\n" for address, names in (*local, *extra, *own))


def own_names(hostname: str, domainname: str) -> str:
    """What a container's own address is called in its ``hosts``: ``web.example.org web``, or the hostname."""
    full = f"{hostname}.{domainname}" if domainname else hostname
    return f"{full} {full.partition('.')[0]}" if "." in full else full


class ResolvConf:
    """What a ``resolv.conf`` says, in the parts that matter: name servers, search domains, options."""

    def __init__(self, servers: Sequence[str] = (), search: Sequence[str] = (), options: Sequence[str] = ()) -> None:
        self.servers = tuple(servers)
        self.search = tuple(search)
        self.options = tuple(options)

    @classmethod
    def parse(cls, text: str) -> ResolvConf:
        """Read one. The last ``search`` or ``domain`` line counts, as for the C library."""
        servers: list[str] = []
        search: list[str] = []
        options: list[str] = []
        for line in text.splitlines():
            words = line.split("#", 1)[0].split(";", 1)[0].split()
            match words:
                case ["nameserver", server, *_]:
                    servers.append(server)
                case ["search" | "domain", *names]:
                    search = names
                case ["options", *names]:
                    options += names
        return cls(servers, search, options)

    def override(self, servers: Sequence[str], search: Sequence[str], options: Sequence[str]) -> ResolvConf:
        """With what ``--dns``, ``--dns-search`` and ``--dns-option`` ask for; a search of ``.`` is none at all."""
        chosen = () if list(search) == ["."] else tuple(search) or self.search
        return ResolvConf(tuple(servers) or self.servers, chosen, tuple(options) or self.options)

    def for_bridge(self) -> ResolvConf:
        """Without servers that are reached on the host's loopback only; public ones if none is left."""
        reachable = tuple(s for s in self.servers if not _is_local(s))
        return ResolvConf(reachable or FALLBACK_SERVERS, self.search, self.options)

    def for_embedded(self) -> ResolvConf:
        """With the engine's own server as the only one. It forwards what it does not know to ``servers``."""
        options = self.options if any(o.startswith("ndots:") for o in self.options) else (*self.options, "ndots:0")
        return ResolvConf((EMBEDDED_SERVER,), self.search, options)

    def text(self) -> str:
        """The file."""
        lines = [f"nameserver {server}" for server in self.servers]
        if self.search:
            lines.append("search " + " ".join(self.search))
        if self.options:
            lines.append("options " + " ".join(self.options))
        return "# Generated by berth at the start of this container.\n\n" + "".join(f"{line}\n" for line in lines)


def _is_local(server: str) -> bool:
    try:
        address = ip_address(server.partition("%")[0])
    except ValueError:
        return True
    return address.is_loopback or (address.version == 6 and address.is_link_local)


def host_resolv_conf_sync(path: Path = Path("/etc/resolv.conf")) -> str:
    """The host's ``resolv.conf``; the real upstream servers where that one only names systemd-resolved's stub."""
    text = _read(path)
    if ResolvConf.parse(text).servers == (_STUB_SERVER,) and _RESOLVED_FILE.exists():
        return _read(_RESOLVED_FILE)
    return text


def host_hosts_sync() -> str:
    """The host's ``hosts``."""
    return _read(Path("/etc/hosts"))


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except FileNotFoundError:
        return ""


def write_files_sync(directory: Path, *, hosts: str, hostname: str, resolv: str) -> tuple[Path, Path, Path]:
    """Write the three files and return their paths.

    They are written in place, not renamed: a running container has them bind-mounted and must see the change.
    """
    directory.mkdir(parents=True, exist_ok=True)
    paths = (directory / "hosts", directory / "hostname", directory / "resolv.conf")
    for path, text in zip(paths, (hosts, f"{hostname}\n", resolv), strict=True):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        with open(descriptor, "w") as file:
            file.write(text)
    return paths
