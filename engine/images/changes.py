"""The ``--change`` instructions of import and commit, applied to a runtime configuration. Pure.

One Dockerfile instruction a change, of the few that only alter configuration; words of errors are docker's.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Sequence
from posixpath import isabs, join, normpath

import msgspec

from engine.clock import duration_ns
from engine.errors import InvalidParameter
from engine.images.model import Healthcheck, RuntimeConfig

_DEFAULT_SHELL = ["/bin/sh", "-c"]


def apply_changes(config: RuntimeConfig, changes: Sequence[str]) -> RuntimeConfig:
    """``config`` after every change in order. Raises ``InvalidParameter``.

    A new entry point drops the command that the configuration came with: it was for another one.
    """
    own_command = False
    lines = [line for change in changes for line in _joined(change)]
    if changes and not lines:
        raise InvalidParameter("file with no instructions")
    for line in lines:
        name = line.partition(" ")[0].upper()
        config = _apply(config, line)
        own_command = own_command or name == "CMD"
        if name == "ENTRYPOINT" and not own_command:
            config = msgspec.structs.replace(config, cmd=None)
    return config


def _joined(change: str) -> list[str]:
    text = re.sub(r"\\[ \t]*\n", "", change)
    return [line.strip() for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]


def _apply(config: RuntimeConfig, line: str) -> RuntimeConfig:
    word, _, rest = line.partition(" ")
    name, rest = word.upper(), rest.strip()
    instruction = _INSTRUCTIONS.get(name)
    if instruction is None:
        raise InvalidParameter(f"{word.lower()} is not a valid change command")
    if not rest and name not in ("CMD", "ENTRYPOINT"):
        amount = "exactly one" if name in ("WORKDIR", "USER", "STOPSIGNAL") else "at least one"
        raise InvalidParameter(f"{name} requires {amount} argument")
    return instruction(config, rest)


def command(text: str, shell: Sequence[str] | None) -> list[str]:
    """A command in JSON or shell form to the list that is executed; without one the shell, as dockerd has it."""
    if text.startswith("["):
        try:
            return msgspec.json.decode(text, type=list[str])
        except msgspec.DecodeError:
            pass
    return [*(shell or _DEFAULT_SHELL), *([text] if text else [])]


def words(text: str, env: Sequence[str] | None) -> list[str]:
    """A JSON array of strings, or words as a shell would split them; variables of ``env`` are filled in."""
    if text.startswith("["):
        try:
            return [expand(word, env) for word in msgspec.json.decode(text, type=list[str])]
        except msgspec.DecodeError:
            pass
    try:
        return [expand(word, env).replace(_DOLLAR, "$") for word in shlex.split(_QUOTED.sub(_keep_dollars, text))]
    except ValueError as error:
        raise InvalidParameter(f"cannot split {text!r}: {error}") from error


_DOLLAR = "\0"
"""Stands for a dollar sign that means itself while words are split."""
_QUOTED = re.compile(r"""\"(?:\\.|[^"\\])*"|'[^']*'|\\\$""", re.DOTALL)
_VARIABLE = re.compile(r"\$(?:(\w+)|\{(\w+)(?::([-+])([^}]*))?\})")


def _keep_dollars(match: re.Match[str]) -> str:
    quoted = match[0]
    return quoted.replace("$", _DOLLAR) if quoted.startswith("'") else quoted.replace("\\$", _DOLLAR)


def expand(text: str, env: Sequence[str] | None) -> str:
    """``$name``, ``${name}``, ``${name:-default}``, ``${name:+other}`` with the values of ``env`` (``name=value``)."""
    values = dict(entry.partition("=")[::2] for entry in env or ())

    def value(match: re.Match[str]) -> str:
        found = values.get(match[1] or match[2], "")
        if match[3] == "-":
            return found or match[4]
        if match[3] == "+":
            return match[4] if found else ""
        return found

    return _VARIABLE.sub(value, text)


def pairs(text: str, name: str, env: Sequence[str] | None) -> dict[str, str]:
    """``k=v …``, or docker's old ``k v``."""
    parts = words(text, env)
    if "=" not in parts[0]:
        if len(parts) < 2:
            raise InvalidParameter(f"{name} must have two arguments")
        return {parts[0]: expand(text[len(parts[0]) :].strip(), env)}
    found: dict[str, str] = {}
    for part in parts:
        key, equals, value = part.partition("=")
        if not equals:
            raise InvalidParameter(f'Syntax error - can\'t find = in "{part}". Must be of the form: name=value')
        if not key:
            raise InvalidParameter(f"{name} names can not be blank")
        found[key] = value
    return found


def _cmd(config: RuntimeConfig, text: str) -> RuntimeConfig:
    return msgspec.structs.replace(config, cmd=command(text, config.shell))


def _entrypoint(config: RuntimeConfig, text: str) -> RuntimeConfig:
    return msgspec.structs.replace(config, entrypoint=command(text, config.shell) or None if text else None)


def _env(config: RuntimeConfig, text: str) -> RuntimeConfig:
    env = list(config.env or ())
    for key, value in pairs(text, "ENV", config.env).items():
        at = next((i for i, entry in enumerate(env) if entry.partition("=")[0] == key), None)
        if at is None:
            env.append(f"{key}={value}")
        else:
            env[at] = f"{key}={value}"
    return msgspec.structs.replace(config, env=env)


def _label(config: RuntimeConfig, text: str) -> RuntimeConfig:
    return msgspec.structs.replace(config, labels={**(config.labels or {}), **pairs(text, "LABEL", config.env)})


def _expose(config: RuntimeConfig, text: str) -> RuntimeConfig:
    ports = dict(config.exposed_ports or {})
    for word in words(text, config.env):
        ports.update({port: {} for port in exposed(word)})
    return msgspec.structs.replace(config, exposed_ports=ports)


def exposed(text: str) -> list[str]:
    """``80``, ``80/udp`` or ``80-82/tcp`` to the keys of ``ExposedPorts``."""
    matched = re.fullmatch(r"(\d+)(?:-(\d+))?(?:/(\w+))?", text)
    if matched is None:
        raise InvalidParameter(f"Invalid containerPort: {text}")
    first, last, protocol = int(matched[1]), int(matched[2] or matched[1]), (matched[3] or "tcp").lower()
    if not 0 < first <= last <= 65535:
        raise InvalidParameter(f"Invalid containerPort: {text}")
    if protocol not in ("tcp", "udp", "sctp"):
        raise InvalidParameter(f"Invalid proto: {protocol}")
    return [f"{port}/{protocol}" for port in range(first, last + 1)]


def _user(config: RuntimeConfig, text: str) -> RuntimeConfig:
    return msgspec.structs.replace(config, user=expand(text, config.env))


def _volume(config: RuntimeConfig, text: str) -> RuntimeConfig:
    found = [word.strip() for word in words(text, config.env)]
    if "" in found:
        raise InvalidParameter("VOLUME specified can not be an empty string")
    return msgspec.structs.replace(config, volumes={**(config.volumes or {}), **{word: {} for word in found}})


def _workdir(config: RuntimeConfig, text: str) -> RuntimeConfig:
    text = expand(text, config.env)
    path = text if isabs(text) else join("/", config.working_dir, text)
    return msgspec.structs.replace(config, working_dir=normpath(path))


def _onbuild(config: RuntimeConfig, text: str) -> RuntimeConfig:
    trigger = text.split(None, 1)[0].upper()
    if trigger == "ONBUILD":
        raise InvalidParameter("Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed")
    if trigger in ("MAINTAINER", "FROM"):
        raise InvalidParameter(f"{trigger} isn't allowed as an ONBUILD trigger")
    return msgspec.structs.replace(config, on_build=[*(config.on_build or ()), text])


def _stopsignal(config: RuntimeConfig, text: str) -> RuntimeConfig:
    return msgspec.structs.replace(config, stop_signal=expand(text, config.env))


def _shell(config: RuntimeConfig, text: str) -> RuntimeConfig:
    if not text.startswith("["):
        raise InvalidParameter("SHELL requires the arguments to be in JSON form")
    return msgspec.structs.replace(config, shell=words(text, None))


_HEALTH_TIMES = {name: name.replace("-", "_") for name in ("interval", "timeout", "start-period", "start-interval")}


def _healthcheck(config: RuntimeConfig, text: str) -> RuntimeConfig:
    options: dict[str, int] = {}
    while text.startswith("--"):
        flag, _, text = text.partition(" ")
        text = text.strip()
        name, _, value = flag[2:].partition("=")
        try:
            if name == "retries":
                options["retries"] = int(value)
            elif name in _HEALTH_TIMES:
                options[_HEALTH_TIMES[name]] = duration_ns(value)
            else:
                raise InvalidParameter(f"unknown flag: {name}")
        except ValueError as error:
            raise InvalidParameter(f"invalid value for {name}: {value}") from error
    kind, _, rest = text.partition(" ")
    if kind.upper() == "NONE":
        if rest.strip() or options:
            raise InvalidParameter("HEALTHCHECK NONE takes no arguments")
        return msgspec.structs.replace(config, healthcheck=Healthcheck(test=["NONE"]))
    if kind.upper() == "CMD" and not rest.strip():
        raise InvalidParameter("Missing command after HEALTHCHECK CMD")
    if kind.upper() != "CMD":
        raise InvalidParameter(f'Unknown type "{kind.upper()}" in HEALTHCHECK (try CMD)')
    rest = rest.strip()
    test = ["CMD", *words(rest, None)] if rest.startswith("[") else ["CMD-SHELL", rest]
    return msgspec.structs.replace(config, healthcheck=Healthcheck(test=test, **options))


_INSTRUCTIONS: dict[str, Callable[[RuntimeConfig, str], RuntimeConfig]] = {
    "CMD": _cmd,
    "ENTRYPOINT": _entrypoint,
    "ENV": _env,
    "EXPOSE": _expose,
    "HEALTHCHECK": _healthcheck,
    "LABEL": _label,
    "ONBUILD": _onbuild,
    "SHELL": _shell,
    "STOPSIGNAL": _stopsignal,
    "USER": _user,
    "VOLUME": _volume,
    "WORKDIR": _workdir,
}
