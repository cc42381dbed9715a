"""From a container's log options to what its shim is told: files, attributes, and where a remote driver delivers. Pure.

dockerd looks at most values only when a container starts; its words for the bad ones are kept. Raises ValueError.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from engine.containers.logoptions import (
    DEFAULT_BUFFER_BYTES,
    NON_BLOCKING,
    REMOTE_DRIVERS,
    Options,
    parse_bool,
    parse_duration,
    parse_facility,
    parse_fluentd_address,
    parse_gelf_address,
    parse_int,
    parse_syslog_address,
)
from engine.containers.logtag import DEFAULT_TAG, LogSubject, extra_attributes, render_tag
from engine.sizes import parse_size

_CACHE = {"max-size": str(20 << 20), "max-file": "5", "compress": "true"}
_FILE_NAMES = {"json-file": "{}-json.log", "local": "container-local.log"}
_ASYNC_BYTES = 8 << 20
_FOREVER = 2**31 - 1


@dataclass(frozen=True, slots=True)
class LogPlan:
    """A shim's log: rotation of its file, attributes of each entry, the remote driver's document.

    ``buffer_bytes`` is None for the mode blocking; ``file_name`` is empty where nothing is kept here.
    """

    driver: str
    file_name: str
    rotation: Mapping[str, str] = field(default_factory=dict)
    attributes: Mapping[str, str] = field(default_factory=dict)
    sink: Mapping[str, Any] = field(default_factory=dict)
    buffer_bytes: int | None = None


def log_file_name(driver: str, options: Options, container_id: str) -> str:
    """The file in the container's folder from which its log is read; empty when there is none."""
    if driver == "none":
        return ""
    if driver in REMOTE_DRIVERS:
        return "" if _flag(options, "cache-disabled") else "container-cached.log"
    return _FILE_NAMES.get(driver, _FILE_NAMES["json-file"]).format(container_id)


def plan_log(driver: str, options: Options, subject: LogSubject) -> LogPlan:
    """Everything a start needs to know of the log. Raises ``ValueError``."""
    name = log_file_name(driver, options, subject.id)
    if driver == "none":
        return LogPlan(driver, name)
    attributes = extra_attributes(subject, options)
    buffer = None
    if options.get("mode") == NON_BLOCKING:
        size = options.get("max-buffer-size", "")
        buffer = parse_size(size) if size else DEFAULT_BUFFER_BYTES
    if driver not in REMOTE_DRIVERS:
        tag = render_tag(options.get("tag", ""), subject, options)
        if tag:
            attributes["tag"] = tag
        rotation = _local_rotation(options) if driver == "local" else _json_rotation(options)
        return LogPlan(driver, name, rotation, attributes, {}, buffer)
    tag = render_tag(options.get("tag") or DEFAULT_TAG, subject, options)
    sink = _SINKS[driver](options, subject, tag)
    if buffer is None and sink.get("async"):
        buffer = _ASYNC_BYTES
    return LogPlan(driver, name, _cache_rotation(options), attributes, sink, buffer)


def _json_rotation(options: Options) -> dict[str, str]:
    rotation: dict[str, str] = {}
    if "max-size" in options:
        size = parse_size(options["max-size"], decimal=True)
        if size <= 0:
            raise ValueError("max-size must be a positive number")
        rotation["max-size"] = str(size)
    files = parse_int(options.get("max-file", "1"))
    if files < 1:
        raise ValueError("max-file cannot be less than 1")
    rotation["max-file"] = str(files)
    if _flag(options, "compress"):
        if files < 2 or "max-size" not in options:
            raise ValueError("compress cannot be true when max-file is less than 2 or max-size is not set")
        rotation["compress"] = "true"
    return rotation


def _local_rotation(options: Options) -> dict[str, str]:
    rotation = dict(_CACHE)
    if "max-size" in options:
        try:
            rotation["max-size"] = str(parse_size(options["max-size"], decimal=True))
        except ValueError as error:
            raise ValueError(f"invalid value for max-size: {options['max-size']}: {error}") from error
    if "max-file" in options:
        rotation["max-file"] = str(parse_int(options["max-file"]))
        if int(rotation["max-file"]) < 1:
            raise ValueError("max-file cannot be less than 1")
    try:
        compress = _flag(options, "compress", default=int(rotation["max-file"]) > 1)
    except ValueError as error:
        raise ValueError(f"error reading compress log option: {error}") from error
    if compress and int(rotation["max-file"]) < 2:
        raise ValueError("compression cannot be enabled when max file count is 1")
    return {**rotation, "compress": "true" if compress else "false"}


def _cache_rotation(options: Options) -> dict[str, str]:
    wanted = {key.removeprefix("cache-"): value for key, value in options.items() if key.startswith("cache-max-")}
    if "cache-compress" in options:
        wanted["compress"] = options["cache-compress"]
    return _local_rotation(wanted)


def _syslog(options: Options, subject: LogSubject, tag: str) -> dict[str, Any]:
    address = parse_syslog_address(options.get("syslog-address", ""))
    return {
        "network": address.network,
        "address": address.place,
        "facility": parse_facility(options.get("syslog-facility", "")),
        "format": options.get("syslog-format", ""),
        "tag": tag,
        "hostname": subject.hostname,
        "tls": {
            "ca": options.get("syslog-tls-ca-cert", ""),
            "cert": options.get("syslog-tls-cert", ""),
            "key": options.get("syslog-tls-key", ""),
            # docker looks at the option's presence, not at its value
            "skip_verify": "syslog-tls-skip-verify" in options,
        },
    }


def _journald(options: Options, subject: LogSubject, tag: str) -> dict[str, Any]:
    fields = {
        "CONTAINER_ID": subject.id[:12],
        "CONTAINER_ID_FULL": subject.id,
        "CONTAINER_NAME": subject.name,
        "CONTAINER_TAG": tag,
        "IMAGE_NAME": subject.image,
        "SYSLOG_IDENTIFIER": tag,
    }
    return {"fields": {**fields, **extra_attributes(subject, options, _journal_name)}}


def _journal_name(key: str) -> str:
    return re.sub(r"[^A-Z0-9_]", "_", key.upper()).lstrip("_")


def _gelf(options: Options, subject: LogSubject, tag: str) -> dict[str, Any]:
    address = parse_gelf_address(options.get("gelf-address", ""))
    extra = {
        "_container_id": subject.id,
        "_container_name": subject.name,
        "_image_id": subject.image_id,
        "_image_name": subject.image,
        "_command": subject.command,
        "_tag": tag,
        "_created": subject.created,
        **extra_attributes(subject, options, lambda key: key if key.startswith("_") else f"_{key}"),
    }
    return {
        "network": address.network,
        "address": address.place,
        "hostname": subject.hostname,
        "extra": extra,
        "compression": options.get("gelf-compression-type", "gzip"),
        "level": parse_int(options.get("gelf-compression-level", "1")),
        "reconnects": parse_int(options.get("gelf-tcp-max-reconnect", "3")),
        "delay": parse_int(options.get("gelf-tcp-reconnect-delay", "1")),
    }


def _fluentd(options: Options, subject: LogSubject, tag: str) -> dict[str, Any]:
    address = parse_fluentd_address(options.get("fluentd-address", ""))
    record = {"container_id": subject.id, "container_name": f"/{subject.name}", **extra_attributes(subject, options)}
    return {
        "network": address.network,
        "address": address.place,
        "tag": tag,
        "record": record,
        "async": _flag(options, "fluentd-async") or _flag(options, "fluentd-async-connect"),
        "sub_second": _flag(options, "fluentd-sub-second-precision"),
        "ack": _flag(options, "fluentd-request-ack"),
        "retry_wait": parse_duration(options.get("fluentd-retry-wait", "1s")),
        "max_retries": parse_int(options.get("fluentd-max-retries", str(_FOREVER))),
    }


def _flag(options: Options, key: str, *, default: bool = False) -> bool:
    return parse_bool(options[key]) if options.get(key) else default


_SINKS = {"syslog": _syslog, "journald": _journald, "gelf": _gelf, "fluentd": _fluentd}
