"""The daemon's own log lines."""

from __future__ import annotations

import io
import logging
import sys
from collections.abc import Iterator

import pytest

from engine.config import Config
from engine.logs import KeyValueFormatter, configure_logging


@pytest.fixture
def root_logger() -> Iterator[logging.Logger]:
    root, asyncio_logger = logging.getLogger(), logging.getLogger("asyncio")
    before = root.handlers[:], root.level, asyncio_logger.level
    yield root
    root.handlers[:] = before[0]
    root.setLevel(before[1])
    asyncio_logger.setLevel(before[2])


def record(message: str, level: int = logging.INFO) -> logging.LogRecord:
    made = logging.LogRecord("engine.daemon", level, __file__, 1, message, None, None)
    made.created = 1_767_323_045.25
    return made


def test_a_line_has_time_level_message_and_module() -> None:
    assert KeyValueFormatter().format(record("up")) == (
        'time="2026-01-02T03:04:05.250000000Z" level=info msg="up" module=engine.daemon'
    )
    assert " level=warning " in KeyValueFormatter().format(record("x", logging.WARNING))
    assert " level=fatal " in KeyValueFormatter().format(record("x", logging.CRITICAL))


def test_a_message_cannot_forge_a_line() -> None:
    line = KeyValueFormatter().format(record('a\nlevel=error msg="é"'))
    assert "\n" not in line
    assert r'msg="a\nlevel=error msg=\"é\""' in line


def test_a_traceback_stays_on_the_line() -> None:
    made = record("failed", logging.ERROR)
    try:
        raise ValueError("why")
    except ValueError:
        made.exc_info = sys.exc_info()
    line = KeyValueFormatter().format(made)
    assert "\n" not in line
    assert 'error="Traceback' in line
    assert "ValueError: why" in line


@pytest.mark.parametrize(
    ("config", "level"),
    [
        (Config(), logging.INFO),
        (Config(log_level="trace"), logging.DEBUG),
        (Config(log_level="warn"), logging.WARNING),
        (Config(log_level="warning"), logging.WARNING),
        (Config(log_level="fatal"), logging.CRITICAL),
        (Config(log_level="panic"), logging.CRITICAL),
        (Config(log_level="fatal", debug=True), logging.DEBUG),
    ],
)
def test_the_level_is_the_configurations(
    config: Config, level: int, root_logger: logging.Logger, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = io.StringIO()
    monkeypatch.setattr(sys, "stderr", written)
    configure_logging(config)
    configure_logging(config)
    assert root_logger.level == level
    logging.getLogger("some.place").critical("once")
    assert written.getvalue().count('msg="once" module=some.place\n') == 1
