"""The daemon's own log: one line a record on standard error, ``time=… level=… msg="…"`` as dockerd writes it."""

from __future__ import annotations

import json
import logging
import sys

from engine.clock import rfc3339_fixed
from engine.config import Config

_NAMES = {"WARNING": "warning", "CRITICAL": "fatal"}
_LEVELS = {
    "trace": logging.DEBUG,
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warn": logging.WARNING,
    "warning": logging.WARNING,
    "error": logging.ERROR,
    "fatal": logging.CRITICAL,
    "panic": logging.CRITICAL,
}


class KeyValueFormatter(logging.Formatter):
    """Quotes the message, so that nothing a client sends can forge a line."""

    def format(self, record: logging.LogRecord) -> str:
        """One line; a traceback follows as its own quoted value."""
        level = _NAMES.get(record.levelname, record.levelname.lower())
        at = rfc3339_fixed(int(record.created * 1_000_000) * 1000)
        line = (
            f'time="{at}" level={level} msg={json.dumps(record.getMessage(), ensure_ascii=False)} module={record.name}'
        )
        if record.exc_info and record.exc_info[0] is not None:
            line += f" error={json.dumps(self.formatException(record.exc_info), ensure_ascii=False)}"
        return line


def configure_logging(config: Config) -> None:
    """Set level and form of the root logger; may be called again after a reload."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(KeyValueFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.DEBUG if config.debug else _LEVELS[config.log_level])
    logging.getLogger("asyncio").setLevel(logging.WARNING)
