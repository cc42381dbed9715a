"""Logs of a registry that runs alone: text or JSON on standard error, and the access log on standard output."""

from __future__ import annotations

import datetime
import logging
import sys
import time
from collections.abc import Mapping

import msgspec
from aiohttp.web_request import BaseRequest

from registry.server.replies import Reply

_LEVELS = {"error": logging.ERROR, "warn": logging.WARNING, "info": logging.INFO, "debug": logging.DEBUG}
access = logging.getLogger("berth.registry.access")


class _Text(logging.Formatter):
    def __init__(self, fields: Mapping[str, str]) -> None:
        super().__init__()
        self._fields = "".join(f' {_quoted(name)}="{_quoted(value)}"' for name, value in fields.items())

    def format(self, record: logging.LogRecord) -> str:
        moment = _rfc3339(record.created)
        line = f'time="{moment}" level={record.levelname.lower()} msg="{_quoted(record.getMessage())}"{self._fields}'
        return line + ("\n" + self.formatException(record.exc_info) if record.exc_info else "")


class _Json(logging.Formatter):
    def __init__(self, fields: Mapping[str, str]) -> None:
        super().__init__()
        self._fields = dict(fields)

    def format(self, record: logging.LogRecord) -> str:
        entry = {
            **self._fields,
            "time": _rfc3339(record.created),
            "level": record.levelname.lower(),
            "msg": record.getMessage(),
        }
        if record.exc_info:
            entry["error"] = self.formatException(record.exc_info)
        return msgspec.json.encode(entry).decode()


def set_up_logging(level: str, form: str, fields: Mapping[str, str]) -> None:
    """Configure the process's logging for a registry of its own; `fields` stand in every line."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json(fields) if form in ("json", "logstash") else _Text(fields))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(_LEVELS.get(level, logging.INFO))
    plain = logging.StreamHandler(sys.stdout)
    plain.setFormatter(logging.Formatter("%(message)s"))
    access.handlers[:] = [plain]
    access.propagate = False
    access.setLevel(logging.INFO)


class AccessLog:
    """One line per answer, in Apache's combined format or as JSON."""

    def __init__(self, form: str) -> None:
        self._json = form in ("json", "logstash")

    def __call__(self, request: BaseRequest, reply: Reply, kind: str, user: str, started: float) -> None:
        """Log one answer. Whatever the client sent is quoted, so that nothing it sends can forge a line."""
        took = time.perf_counter() - started
        method, target = request.method, request._message.path
        agent, referer = request.headers.get("User-Agent", ""), request.headers.get("Referer", "")
        if self._json:
            entry = {
                "time": _rfc3339(time.time()),
                "remote": request.remote or "",
                "user": user,
                "method": method,
                "uri": target,
                "kind": kind,
                "status": reply.status,
                "bytes": reply.content_length,
                "seconds": round(took, 6),
                "agent": agent,
            }
            access.info("%s", msgspec.json.encode(entry).decode())
            return
        moment = time.strftime("%d/%b/%Y:%H:%M:%S +0000", time.gmtime())
        access.info(
            '%s - %s [%s] "%s %s HTTP/1.1" %d %d "%s" "%s"',
            request.remote or "-",
            _quoted(user) or "-",
            moment,
            method,
            _quoted(target),
            reply.status,
            reply.content_length,
            _quoted(referer),
            _quoted(agent),
        )


def _rfc3339(moment: float) -> str:
    return (
        datetime.datetime.fromtimestamp(moment, datetime.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    )


def _quoted(text: str) -> str:
    return text.encode("unicode_escape").decode("ascii").replace('"', '\\"')
