"""/_ping, /version, /info, /events, /system/df, and the answers of an engine that is not part of a swarm."""

from __future__ import annotations

import asyncio
import contextlib
import os
import platform
from pathlib import Path
from typing import Any

from aiohttp import web

from engine import API_VERSION, MIN_API_VERSION, __version__
from engine.api.app import ENGINE_VERSION, Route
from engine.api.decode import api_version, query_filters, query_str, timestamp_ns
from engine.api.streams import json_lines, json_response
from engine.api.usage import DiskUsageReport
from engine.clock import now_ns, rfc3339_fixed
from engine.config import Config, mask_credentials
from engine.containers.assembly import Host
from engine.containers.hostprobe import cdi_catalog_sync
from engine.containers.model import Status
from engine.containers.store import ContainerStore
from engine.errors import InvalidParameter, NotImplementedYet, Unavailable
from engine.events import EventBus
from engine.images.store import ImageStore
from engine.tasks import run_blocking
from registry.client.proxies import Proxies

NOT_IN_A_SWARM = (
    'This node is not a swarm manager. Use "docker swarm init" or "docker swarm join" '
    "to connect this node to swarm and try again."
)
SWARM_PATHS = ("/swarm", "/services", "/tasks", "/nodes", "/secrets", "/configs")
METHODS = ("GET", "POST", "DELETE")
# What a host should be able to limit, in the order that dockerd misses it.
_WARNED = (
    ("memory", "memory limit"),
    ("swap", "swap limit"),
    ("cpu_cfs", "cpu cfs quota"),
    ("cpu_cfs", "cpu cfs period"),
    ("cpu_shares", "cpu shares"),
    ("cpuset", "cpuset"),
)
_OPEN_API = """[DEPRECATION NOTICE]: API is accessible on {} without {}.
         Access to the remote API is equivalent to root access on the host. Refer
         to the 'Docker daemon attack surface' section in the documentation for
         more information: https://docs.docker.com/go/attack-surface/
In future versions this will be a hard failure preventing the daemon from starting! Learn more at: \
https://docs.docker.com/go/api-security/"""
LOG_PLUGINS = ["fluentd", "gelf", "journald", "json-file", "local", "syslog"]
NETWORK_PLUGINS = ["bridge", "host", "ipvlan", "macvlan", "null"]


class SystemRoutes:
    """Handlers about the engine as a whole."""

    def __init__(
        self,
        config: Config,
        host: Host,
        engine_id: str,
        containers: ContainerStore,
        images: ImageStore,
        events: EventBus,
        usage: DiskUsageReport,
        driver: str,
    ) -> None:
        self.config = self._cdi = config  # CDI is on or off for the life of the daemon
        self._host = host
        self._engine_id = engine_id
        self._containers = containers
        self._images = images
        self._events = events
        self._usage = usage
        self._driver = driver

    def reloaded(self, config: Config) -> None:
        """Show the settings that a reload changed."""
        self.config = config

    def table(self) -> list[Route]:
        """All routes of this resource."""
        return [
            Route("GET", "/_ping", self.ping),
            Route("HEAD", "/_ping", self.ping),
            Route("GET", "/version", self.version),
            Route("GET", "/info", self.info),
            Route("GET", "/events", self.events),
            Route("GET", "/system/df", self.disk_usage),
            Route("GET", "/plugins", self.empty_list),
            Route("POST", "/build/prune", self.no_build_cache),
            Route("POST", "/swarm/init", self.no_cluster),
            Route("POST", "/swarm/join", self.no_cluster),
            Route("POST", "/swarm/leave", self.no_member),
            *(Route("GET", path, self.no_swarm) for path in SWARM_PATHS),
            *(Route(method, f"{path}/{{rest:.*}}", self.no_swarm) for path in SWARM_PATHS for method in METHODS),
        ]

    async def ping(self, request: web.Request) -> web.StreamResponse:
        """Alive, and which API and builder this is."""
        headers = {
            "Builder-Version": "1",
            "Swarm": "inactive",
            "Cache-Control": "no-cache, no-store, must-revalidate",
            "Pragma": "no-cache",
        }
        body = b"" if request.method == "HEAD" else b"OK"
        return web.Response(body=body, headers=headers, content_type="text/plain", charset="utf-8")

    async def version(self, request: web.Request) -> web.StreamResponse:
        """What this engine is made of."""
        newest, oldest = f"{API_VERSION[0]}.{API_VERSION[1]}", f"{MIN_API_VERSION[0]}.{MIN_API_VERSION[1]}"
        kernel, arch = platform.release(), _go_arch()
        runtime = self._host.runtimes.known[self._host.runtimes.default]
        details = {
            "ApiVersion": newest,
            "Arch": arch,
            "BuildTime": "",
            "Experimental": str(self.config.experimental).lower(),
            "GitCommit": "",
            "GoVersion": "",
            "KernelVersion": kernel,
            "MinAPIVersion": oldest,
            "Os": "linux",
        }
        components = [
            {"Name": "Engine", "Version": ENGINE_VERSION, "Details": details},
            {"Name": "berth", "Version": __version__, "Details": {"Python": platform.python_version()}},
            {"Name": runtime.name, "Version": runtime.version, "Details": {"GitCommit": runtime.commit}},
        ]
        return json_response(
            {
                "Platform": {"Name": f"berth {__version__}"},
                "Components": components,
                "Version": ENGINE_VERSION,
                "ApiVersion": newest,
                "MinAPIVersion": oldest,
                "GitCommit": "",
                "GoVersion": "",
                "Os": "linux",
                "Arch": arch,
                "KernelVersion": kernel,
                "BuildTime": "",
            }
        )

    async def info(self, request: web.Request) -> web.StreamResponse:
        """``docker info``."""
        version = api_version(request)
        cdi = await run_blocking(cdi_catalog_sync, self._cdi)
        devices = [{"Source": "cdi", "ID": name} for name in sorted(cdi.devices)]
        warnings = [*self._warnings(), *cdi.warnings]
        found = {**self.about(version), "Warnings": warnings or None}
        if version >= (1, 49):
            found["FirewallBackend"] = {"Driver": "nftables"}
        if version >= (1, 50):
            found["DiscoveredDevices"] = devices
        return json_response(found)

    def about(self, version: tuple[int, int] = API_VERSION) -> dict[str, Any]:
        """The fields of ``docker info`` that are known without looking around."""
        return {
            **self._counts(),
            **self._host_facts(version),
            **self._settings(),
            **self._versions(version),
        }

    def _counts(self) -> dict[str, Any]:
        states = [container.state.status for container in self._containers]
        return {
            "ID": self._engine_id,
            "Containers": len(states),
            "ContainersRunning": states.count(Status.RUNNING) + states.count(Status.RESTARTING),
            "ContainersPaused": states.count(Status.PAUSED),
            "ContainersStopped": sum(_is_stopped(s) for s in states),
            "Images": len(self._images.all()),
            "NFd": len(os.listdir("/proc/self/fd")),
            "NGoroutines": len(asyncio.all_tasks()),
            "NEventsListener": self._events.listeners,
            "SystemTime": rfc3339_fixed(now_ns()),
        }

    def _host_facts(self, version: tuple[int, int]) -> dict[str, Any]:
        facts, supports = self._host.facts, self._host.facts.supports
        profile = self.config.seccomp_profile or "builtin"
        security = [f"name=seccomp,profile={profile}"] if facts.seccomp else []
        if facts.apparmor:
            security.insert(0, "name=apparmor")
        if facts.ids is not None:
            security.append("name=userns")
        if (self.config.default_cgroupns_mode or ("private" if facts.cgroup_version == 2 else "host")) == "private":
            security.append("name=cgroupns")
        if self.config.no_new_privileges:
            security.append("name=no-new-privileges")
        return {
            "MemoryLimit": "memory" in supports,
            "SwapLimit": "swap" in supports,
            "KernelMemory": "kernel_memory" in supports,
            "KernelMemoryTCP": "kernel_memory_tcp" in supports,
            "CpuCfsPeriod": "cpu_cfs" in supports,
            "CpuCfsQuota": "cpu_cfs" in supports,
            "CPUShares": "cpu_shares" in supports,
            "CPUSet": "cpuset" in supports,
            "PidsLimit": "pids" in supports,
            "OomKillDisable": "oom_kill_disable" in supports,
            "IPv4Forwarding": facts.ipv4_forwarding,
            **({"BridgeNfIptables": False, "BridgeNfIp6tables": False} if version < (1, 50) else {}),
            "CgroupDriver": self._host.cgroups.driver,
            "CgroupVersion": str(facts.cgroup_version),
            "KernelVersion": platform.release(),
            "OperatingSystem": _operating_system("PRETTY_NAME"),
            "OSVersion": _operating_system("VERSION_ID"),
            "OSType": "linux",
            "Architecture": platform.machine(),
            "NCPU": facts.cpus,
            "MemTotal": facts.memory_total,
            "Name": os.uname().nodename,
            "SecurityOptions": security,
        }

    def _versions(self, version: tuple[int, int]) -> dict[str, Any]:
        def commit(found: str) -> dict[str, str]:
            return {"ID": found, "Expected": found} if version < (1, 49) else {"ID": found}

        return {
            "ServerVersion": ENGINE_VERSION,
            "ContainerdCommit": commit(""),
            "RuncCommit": commit(self._host.runtimes.known[self._host.runtimes.default].commit),
            "InitCommit": commit(""),
        }

    def _settings(self) -> dict[str, Any]:
        config = self.config
        pools = [{"Base": base, "Size": size} for base, size in config.default_address_pools]
        proxies = Proxies.given(config.http_proxy, config.https_proxy, config.no_proxy)
        return {
            "Driver": self._driver,
            "DriverStatus": [
                ["Backing Filesystem", _file_system(config.data_root)],
                ["Supports d_type", "true"],
                ["Native Overlay Diff", "true"],
                ["userxattr", "false"],
            ],
            "Plugins": {
                "Volume": ["local"],
                "Network": NETWORK_PLUGINS,
                "Authorization": None,
                "Log": LOG_PLUGINS,
            },
            "Debug": config.debug,
            "LoggingDriver": config.log_driver,
            "IndexServerAddress": "https://index.docker.io/v1/",
            "RegistryConfig": _registry_view(config),
            "GenericResources": None,
            "DockerRootDir": str(config.data_root),
            "HttpProxy": mask_credentials(proxies.http),
            "HttpsProxy": mask_credentials(proxies.https),
            "NoProxy": proxies.no,
            "Labels": list(config.labels),
            "ExperimentalBuild": config.experimental,
            "Runtimes": {name: {"path": runtime.path} for name, runtime in self._host.runtimes.known.items()},
            "DefaultRuntime": self._host.runtimes.default,
            "Swarm": {
                "NodeID": "",
                "NodeAddr": "",
                "LocalNodeState": "inactive",
                "ControlAvailable": False,
                "Error": "",
                "RemoteManagers": None,
            },
            "LiveRestoreEnabled": True,
            "Isolation": "",
            "InitBinary": Path(config.init_path or self._host.init_binary).name,
            **({"DefaultAddressPools": pools} if pools else {}),
            "CDISpecDirs": list(self._cdi.cdi_spec_dirs) if self._cdi.has_cdi else [],
        }

    def _warnings(self) -> list[str]:
        """What an administrator should know of this host and these settings, in dockerd's words."""
        supports = self._host.facts.supports
        found = [words for host in self.config.hosts for words in _open_to_others(host, self.config)]
        found += [f"WARNING: No {words} support" for feature, words in _WARNED if feature not in supports]
        if self._host.facts.cgroup_version == 1 and "oom_kill_disable" not in supports:
            found.append("WARNING: No oom kill disable support")
        if not self._host.facts.ipv4_forwarding:
            found.append("WARNING: IPv4 forwarding is disabled")
        if self.config.seccomp_profile not in ("", "builtin"):
            found.append("WARNING: daemon is not using the default seccomp profile")
        return found

    async def events(self, request: web.Request) -> web.StreamResponse:
        """Past events from ``since`` on, then new ones until ``until`` or the client leaves.

        With ``until`` alone everything that is remembered is told first.
        """
        filters = query_filters(request, None)  # what dockerd does not know here it passes over
        now = now_ns()
        since = timestamp_ns(query_str(request, "since"), now)
        until = timestamp_ns(query_str(request, "until"), now)
        if since is not None and until is not None and since > until:
            raise InvalidParameter("`since` time cannot be after `until` time")
        async with json_lines(request) as out:
            await out.start()
            with self._events.subscribe(filters) as subscription:
                if since is not None or until is not None:
                    for event in self._events.past(filters, since or 0, until):
                        await out.send(event.document())
                if until is not None and until <= now:
                    return out.response
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(None if until is None else max(0.0, (until - now_ns()) / 1e9)):
                        async for event in subscription:
                            await out.send(event.document())
        return out.response

    async def disk_usage(self, request: web.Request) -> web.StreamResponse:
        """``docker system df``."""
        kinds = set(request.query.getall("type", []))
        unknown = kinds - {"container", "image", "volume", "build-cache"}
        if unknown:
            raise InvalidParameter(f"unknown object type: {', '.join(sorted(unknown))}")
        return json_response(await self._usage.report(kinds))

    async def no_build_cache(self, request: web.Request) -> web.StreamResponse:
        """``docker system prune`` asks for it too; there is no builder, so nothing is kept for one."""
        return json_response({"CachesDeleted": None, "SpaceReclaimed": 0})

    async def empty_list(self, request: web.Request) -> web.StreamResponse:
        """There are none."""
        return json_response([])

    async def no_swarm(self, request: web.Request) -> web.StreamResponse:
        """What only a manager of a swarm could tell."""
        raise Unavailable(NOT_IN_A_SWARM)

    async def no_member(self, request: web.Request) -> web.StreamResponse:
        """There is nothing to leave."""
        raise Unavailable("This node is not part of a swarm")

    async def no_cluster(self, request: web.Request) -> web.StreamResponse:
        """This engine makes and joins no swarm."""
        raise NotImplementedYet("swarm mode is not supported by this engine")


def _open_to_others(host: str, config: Config) -> list[str]:
    """The warning of an address where whoever reaches it is root on this machine."""
    scheme, _, address = host.partition("://")
    if scheme != "tcp" or config.tlsverify:
        return []
    if config.tls:
        return [_OPEN_API.format(f"https://{address}", "TLS client verification")]
    return [_OPEN_API.format(f"http://{address}", "encryption")]


def _is_stopped(status: Status) -> bool:
    return status not in (Status.RUNNING, Status.PAUSED, Status.RESTARTING)


def _registry_view(config: Config) -> dict[str, Any]:
    cidrs = [entry for entry in config.insecure_registries if "/" in entry]
    hosts = [entry for entry in config.insecure_registries if "/" not in entry]
    index = {
        "docker.io": {"Name": "docker.io", "Mirrors": list(config.registry_mirrors), "Secure": True, "Official": True}
    }
    index |= {host: {"Name": host, "Mirrors": [], "Secure": False, "Official": False} for host in hosts}
    return {
        "AllowNondistributableArtifactsCIDRs": [],
        "AllowNondistributableArtifactsHostnames": [],
        "InsecureRegistryCIDRs": [*cidrs, "::1/128", "127.0.0.0/8"],
        "IndexConfigs": index,
        "Mirrors": [f"{mirror.rstrip('/')}/" for mirror in config.registry_mirrors],
    }


def _go_arch() -> str:
    return {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm"}.get(platform.machine(), platform.machine())


def _operating_system(key: str) -> str:
    try:
        return platform.freedesktop_os_release().get(key, "")
    except OSError:
        return ""


def _file_system(path: Path) -> str:
    """The type of the file system under ``path``, with docker's name for ext2 to ext4."""
    best, kind = "", "unknown"
    with open("/proc/self/mounts", encoding="utf-8", errors="surrogateescape") as lines:
        for line in lines:
            _, target, name, *_ = line.split(" ")
            if (f"{path}/".startswith(target.rstrip("/") + "/")) and len(target) >= len(best):
                best, kind = target, name
    return "extfs" if kind.startswith("ext") else kind
