"""Where today's dockerd differs from 20.10, the peer of the comparison: berth does what today's does (data)."""

from __future__ import annotations

# dockerd 20.10 says some things in words that later versions changed; berth says what the later ones say.
LATER_WORDS: tuple[tuple[str, str], ...] = (
    (
        r'error looking up logging plugin (\S+): plugin "\S+" not found',
        r"logger: no log driver named '\1' is registered",
    ),
    (r"unknown runtime specified (\S+)", r"unknown or invalid runtime name: \1"),
    (r"no such image: \S+: no such image: ", "no such image: "),
    (r"daemon: (maximum retry count cannot be negative)", r"daemon: invalid restart policy: \1"),
    (
        r"daemon: maximum retry count cannot be used with restart policy '\S+'",
        "daemon: invalid restart policy: maximum retry count can only be used with 'on-failure'",
    ),
    (r"daemon: (pool overlaps with other one on this address space).*", r"daemon: invalid pool request: \1"),
    (r"(invalid pool request: pool overlaps with other one on this address space) \(.*", r"\1"),
    (r"daemon: invalid subnet (\S+) : invalid cidr .*", r"daemon: invalid network config:\ninvalid subnet \1: …"),
    (r"(invalid subnet \S+): invalid cidr block notation", r"\1: …"),
    (
        r"daemon: invalid address (\S+): it does not belong to any of this network's subnets",
        r"daemon: … no configured subnet or ip-range contain the ip address \1",
    ),
    (r"daemon: invalid config for network un: invalid endpoint settings:\n(no configured)", r"daemon: … \1"),
    (
        r"daemon: (user specified ip address is supported on user defined networks only)",
        r"daemon: invalid config for network bridge: invalid endpoint settings:\n\1",
    ),
    (
        r"daemon: (invalid ipv[46] address: \S+)",
        r"daemon: invalid config for network town: invalid endpoint settings:\n\1",
    ),
    (
        (
            r"daemon: (container cannot be disconnected from host network or connected to host network"
            r"|cannot (dis)?connect container (to|from) host network - container (must be|was) created in .*)"
        ),
        "daemon: … host network",
    ),
    (r"daemon: (invalid config for network \S+: invalid endpoint settings:\n)?(network-scoped)", r"daemon: … \2"),
    (r"daemon: cannot kill container: \S+: ((invalid signal|the linux daemon does not support).*)", r"daemon: \1"),
    (r"-o parent interface does was not found", "-o parent interface was not found"),
    (r"network \S+ (id <id> )?has active endpoints.*", "network … has active endpoints"),
    (
        r"you cannot remove a running container <id>\. stop the container before attempting removal or force remove",
        'cannot remove container "…": container is running: stop the container before removing or force remove',
    ),
    (r'cannot remove container "/\S+": container is (?=running|paused)', 'cannot remove container "…": container is '),
    # Archives were unpacked by a child process, whose end was told, too.
    (r"error processing tar file\(exit status 1\): ", ""),
    (r"(lookup registry-1\.docker\.io).*", r"\1 …"),
)
# Keys that came or went with a later API, whatever version the client asks for.
LATER_KEYS = (
    "[].GraphDriver.Data",
    "[].HostConfig.KernelMemory",
    "[].NetworkSettings.Networks.bridge.DNSNames",
    "[].NetworkSettings.Networks.bridge.GwPriority",
    "[].EnableIPv4",
    ".CDISpecDirs",
    ".KernelMemory",
)
# The same for a document that is only a part, such as `{{json .HostConfig}}`.
LATER_KEYS_ALONE = (".KernelMemory", ".ConsoleSize", ".MaskedPaths")
