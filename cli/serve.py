"""`berth serve`: dockerd's flags, read into the daemon's configuration. What then runs is engine.daemon's business."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from cli.commands import fail

# Options whose value goes to the configuration under another key than their own name.
_KEYS = {
    "host": "hosts",
    "registry_mirror": "registry-mirrors",
    "insecure_registry": "insecure-registries",
    "label": "labels",
    "default_address_pool": "default-address-pools",
    "add_runtime": "runtimes",
    "log_opt": "log-opts",
    "storage_opt": "storage-opts",
    "exec_opt": "exec-opts",
    "dns_opt": "dns-opts",
    "default_ulimit": "default-ulimits",
    "host_gateway_ip": "host-gateway-ips",
    "default_network_opt": "default-network-opts",
    "authorization_plugin": "authorization-plugins",
    "cdi_spec_dir": "cdi-spec-dirs",
    "containerd_plugins_namespace": "containerd-plugin-namespace",
    "feature": "features",
    "node_generic_resource": "node-generic-resources",
}


_SHORT = re.compile("-[a-zA-Z]=")


def _mapping(values: tuple[str, ...]) -> dict[str, str]:
    return dict(value.partition("=")[::2] for value in values)


def _pool(text: str) -> dict[str, Any]:
    parts = _mapping(tuple(text.split(",")))
    return {"base": parts.get("base", ""), "size": parts.get("size", "")}


def _network_options(values: tuple[str, ...]) -> dict[str, dict[str, str]]:
    """``DRIVER=OPTION=VALUE``, repeated."""
    found: dict[str, dict[str, str]] = {}
    for driver, option in (value.partition("=")[::2] for value in values):
        found.setdefault(driver, {}).update(_mapping((option,)))
    return found


def _ulimit(text: str) -> tuple[str, dict[str, int]]:
    name, _, values = text.partition("=")
    soft, _, hard = values.partition(":")
    return name, {"Name": name, "Soft": int(soft), "Hard": int(hard or soft)}  # type: ignore[dict-item]


_SHAPED: dict[str, Callable[[tuple[str, ...]], Any]] = {
    "runtimes": lambda values: {name: {"path": path} for name, path in _mapping(values).items()},
    "log-opts": _mapping,
    "default-address-pools": lambda values: [_pool(value) for value in values],
    "default-network-opts": _network_options,
    "features": _mapping,
    "default-ulimits": lambda values: dict(_ulimit(value) for value in values),
}


def flags_to_keys(options: dict[str, Any]) -> dict[str, Any]:
    """The options that were given, under the keys of daemon.json; what was not given is left out."""
    given: dict[str, Any] = {}
    for name, value in options.items():
        if value is None or value == ():
            continue
        key = _KEYS.get(name, name.replace("_", "-"))
        shape = _SHAPED.get(key)
        given[key] = shape(value) if shape else list(value) if isinstance(value, tuple) else value
    return given


def _flag(*names: str, **rest: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A boolean option that says nothing unless it is given: `--debug`, `--debug=false` being dockerd's two forms."""
    return click.option(*names, type=bool, is_flag=False, flag_value="true", default=None, **rest)


def _text(*names: str, **rest: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    return click.option(*names, default=None, **rest)


def _list(*names: str, **rest: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    return click.option(*names, multiple=True, **rest)


_OPTIONS = (
    _list("-H", "--host", metavar="ADDRESS", help="unix://PATH, [tcp://]HOST:PORT or fd:// (repeatable)."),
    _text("--data-root", help="Where images, containers and volumes are kept."),
    _text("--exec-root", help="Where the run state is kept; gone after a reboot."),
    _text("-p", "--pidfile"),
    _text("-G", "--group", help="Group that may use the unix socket."),
    _text("-l", "--log-level", metavar="debug|info|warn|error|fatal"),
    _flag("-D", "--debug"),
    _list("--label", metavar="KEY=VALUE"),
    _text("-b", "--bridge", help="The default bridge's interface, or none."),
    _text("--bip", metavar="ADDRESS/PREFIX", help="The default bridge's address."),
    _text("--fixed-cidr"),
    _text("--bip6", metavar="ADDRESS/PREFIX"),
    _text("--fixed-cidr-v6"),
    _text("--mtu", type=int),
    _list("--dns"),
    _list("--dns-opt"),
    _list("--dns-search"),
    _flag("--icc"),
    _text("--ip", help="Host address that -p binds to where none is given."),
    _flag("--ip-forward"),
    _flag("--ip-masq"),
    _flag("--iptables"),
    _flag("--ip6tables"),
    _flag("--ipv6"),
    _flag("--userland-proxy"),
    _list("--default-address-pool", metavar="base=CIDR,size=N"),
    _list("--default-network-opt", metavar="DRIVER=OPTION=VALUE"),
    _text("--default-gateway", metavar="ADDRESS", help="Another way out of the default bridge than the bridge itself."),
    _text("--default-gateway-v6", metavar="ADDRESS"),
    _list("--host-gateway-ip", metavar="ADDRESS", help="What host-gateway in --add-host stands for."),
    _text("--registry-addr", metavar="HOST:PORT|none", help="Where the embedded registry listens."),
    _list("--registry-mirror", metavar="URL"),
    _list("--insecure-registry", metavar="HOST|CIDR"),
    _text("--http-proxy", metavar="URL", help="For connections to registries; else the environment's HTTP_PROXY."),
    _text("--https-proxy", metavar="URL"),
    _text("--no-proxy", metavar="HOST,...", help="Hosts that are spoken to without a proxy."),
    _text("--max-concurrent-downloads", type=int),
    _text("--max-concurrent-uploads", type=int),
    _text("--max-download-attempts", type=int),
    _text("--default-runtime"),
    _list("--add-runtime", metavar="NAME=PATH"),
    _text("--cgroup-parent"),
    _list("--exec-opt", metavar="KEY=VALUE"),
    _flag("--init"),
    _text("--init-path"),
    _text("--log-driver"),
    _list("--log-opt", metavar="KEY=VALUE"),
    _text("--default-shm-size"),
    _text("--default-ipc-mode"),
    _text("--default-cgroupns-mode"),
    _list("--default-ulimit", metavar="NAME=SOFT:HARD"),
    _flag("--no-new-privileges"),
    _text("--userns-remap", metavar="default|USER[:GROUP]", help="Whose subordinate ids containers' users have."),
    _text("--seccomp-profile"),
    _text("-s", "--storage-driver"),
    _list("--storage-opt"),
    _flag("--live-restore"),
    _text("--shutdown-timeout", type=int),
    _flag("--experimental"),
    _text("--metrics-addr", metavar="HOST:PORT", help="Where Prometheus finds the engine's metrics (/metrics)."),
    _list("--cdi-spec-dir", metavar="FOLDER", help="Where CDI specifications are; an empty one for none."),
    _list("--feature", metavar="NAME=BOOLEAN"),
    _flag("--tls"),
    _flag("--tlsverify"),
    _text("--tlscacert"),
    _text("--tlscert"),
    _text("--tlskey"),
)


# Flags of dockerd that are known, and have no effect or are refused; engine.config says why.
_UNUSED_LISTS = "allow-nondistributable-artifacts authorization-plugin node-generic-resource".split()
_UNUSED_FLAGS = "allow-direct-routing cri-containerd ip-forward-no-drop raw-logs rootless selinux-enabled".split()
_UNUSED_TEXTS = (
    "api-cors-header bridge-accept-fwmark containerd containerd-namespace containerd-plugins-namespace cpu-rt-period "
    "cpu-rt-runtime default-stop-timeout firewall-backend log-format "
    "network-control-plane-mtu network-diagnostic-port nri-opts oom-score-adjust "
    "swarm-default-advertise-addr userland-proxy-path"
).split()
_UNUSED = (
    _flag("-r", "--restart", hidden=True),
    *(_list(f"--{name}", hidden=True) for name in _UNUSED_LISTS),
    *(_flag(f"--{name}", hidden=True) for name in _UNUSED_FLAGS),
    *(_text(f"--{name}", hidden=True) for name in _UNUSED_TEXTS),
)


def _all_options(command: Callable[..., None]) -> Callable[..., None]:
    for option in reversed((*_OPTIONS, *_UNUSED)):
        command = option(command)
    return command


class _Flags(click.Command):
    """Short options may have their value after ``=``, as dockerd's (``-H=ADDRESS``)."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """See ``click.Command``."""
        split = [[arg[:2], arg[3:]] if _SHORT.match(arg) else [arg] for arg in args]
        return super().parse_args(ctx, [part for parts in split for part in parts])


@click.command(cls=_Flags)
@_all_options
@click.option(
    "--config-file", type=click.Path(path_type=Path), default=None, help="Instead of /etc/docker/daemon.json."
)
@click.option("--validate", is_flag=True, help="Check the configuration and end.")
def serve(config_file: Path | None, validate: bool, **options: Any) -> None:
    """Run the daemon: engine and registry in one process.

    Flags are dockerd's own; whatever has a flag can also stand in daemon.json.
    """
    # Imported here: every other command starts without the engine's imports.
    from engine.config import ConfigError, load_config

    try:
        config = load_config(flags_to_keys(options), config_file=config_file)
    except ConfigError as error:
        return fail(str(error))
    from engine.daemon import registry_settings, run

    if validate:
        try:
            registry_settings(config)
        except ValueError as error:
            return fail(str(error))
        print("configuration OK")
        return None

    run(config)
    return None
