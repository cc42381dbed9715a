"""Progress of pull, push, load and import: one line per layer that is rewritten on a terminal, plain lines elsewhere.

Promises: an error inside the stream becomes an `ApiError`, exactly as if the request itself had failed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TextIO

from cli.client import ApiError
from cli.tables import size

_BAR_CELLS = 40


def show(messages: Iterable[Mapping[str, Any]], out: TextIO, quiet: bool = False) -> list[Any]:
    """Print a progress stream and return the `aux` documents in it."""
    terminal = out.isatty()
    rows: dict[str, int] = {}
    results: list[Any] = []
    for message in messages:
        if "error" in message or "errorDetail" in message:
            detail = message.get("errorDetail") or {}
            raise ApiError(int(detail.get("code") or 500), str(detail.get("message") or message.get("error")))
        if "aux" in message:
            results.append(message["aux"])
        elif quiet:
            continue
        elif "stream" in message:
            out.write(str(message["stream"]))
        elif terminal and message.get("id") and (message["id"] in rows or not _is_headline(message)):
            _rewrite(message, rows, out)
        elif terminal or not message.get("progressDetail"):
            _append(message, rows, out)
        out.flush()
    return results


def _is_headline(message: Mapping[str, Any]) -> bool:
    return str(message.get("status", "")).startswith(("Pulling from", "The push refers"))


def _append(message: Mapping[str, Any], rows: dict[str, int], out: TextIO) -> None:
    out.write(_text(message) + "\n")
    for name in rows:
        rows[name] += 1


def _rewrite(message: Mapping[str, Any], rows: dict[str, int], out: TextIO) -> None:
    name = str(message["id"])
    if name not in rows:
        _append({}, rows, out)
        rows[name] = 1
    up = rows[name]
    out.write(f"\x1b[{up}A\x1b[2K\r{_text(message)}\r\x1b[{up}B")


def _text(message: Mapping[str, Any]) -> str:
    prefix = f"{message['id']}: " if message.get("id") else ""
    return f"{prefix}{message.get('status', '')}{_bar(message.get('progressDetail') or {})}"


def _bar(detail: Mapping[str, Any]) -> str:
    current, total = int(detail.get("current") or 0), int(detail.get("total") or 0)
    if not current:
        return ""
    if not total:
        return f"  {size(current)}"
    filled = min(_BAR_CELLS, current * _BAR_CELLS // total)
    return f" [{'=' * filled}>{' ' * (_BAR_CELLS - filled)}] {size(current)}/{size(total)}"
