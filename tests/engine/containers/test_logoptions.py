"""Options of log drivers: refused in dockerd's words (taken from dockerd 20.10's answers)."""

from __future__ import annotations

import pytest

from engine.containers.logoptions import (
    Address,
    check_log_options,
    parse_bool,
    parse_duration,
    parse_facility,
    parse_fluentd_address,
    parse_gelf_address,
    parse_int,
    parse_syslog_address,
)

UDP = {"gelf-address": "udp://h:1"}
TCP = {"gelf-address": "tcp://h:1"}


@pytest.mark.parametrize(
    ("driver", "options"),
    [
        ("none", {"anything": "goes"}),
        ("json-file", {"max-size": "later", "max-file": "0", "labels": "a", "env-regex": "b", "tag": "t"}),
        ("json-file", {"mode": "non-blocking", "max-buffer-size": "4m"}),
        ("json-file", {"mode": "blocking", "cache-disabled": "true"}),
        ("local", {"max-size": "1m", "max-file": "2", "compress": "false"}),
        ("syslog", {"syslog-address": "udp://h", "syslog-facility": "local7", "syslog-format": "rfc5424micro"}),
        ("journald", {"tag": "x", "cache-max-size": "1m", "cache-max-file": "2", "cache-compress": "1"}),
        ("gelf", UDP | {"gelf-compression-type": "zlib", "gelf-compression-level": "-1"}),
        ("gelf", TCP | {"gelf-tcp-max-reconnect": "0", "gelf-tcp-reconnect-delay": "7"}),
        ("fluentd", {"fluentd-address": "h:1", "fluentd-async": "1", "fluentd-async-reconnect-interval": "1s"}),
        ("fluentd", {"fluentd-buffer-limit": "8m", "fluentd-retry-wait": "1s", "fluentd-max-retries": "3"}),
    ],
)
def test_what_dockerd_takes_is_taken(driver: str, options: dict[str, str]) -> None:
    check_log_options(driver, options)


@pytest.mark.parametrize(
    ("driver", "options", "words"),
    [
        ("json-file", {"x": "1"}, "unknown log opt 'x' for json-file log driver"),
        ("local", {"labels": "1"}, "unknown log opt 'labels' for log driver local"),
        ("syslog", {"x": "1"}, "unknown log opt 'x' for syslog log driver"),
        ("journald", {"x": "1"}, "unknown log opt 'x' for journald log driver"),
        ("fluentd", {"x": "1"}, "unknown log opt 'x' for fluentd log driver"),
        ("gelf", {"x": "1"}, "gelf-address is a required parameter"),
        ("gelf", UDP | {"x": "1"}, 'unknown log opt "x" for gelf log driver'),
        ("paper", {}, "logger: no log driver named 'paper' is registered"),
        ("local", {"mode": "x"}, "logger: logging mode not supported: x"),
        (
            "json-file",
            {"max-buffer-size": "1m"},
            "logger: max-buffer-size option is only supported with 'mode=non-blocking'",
        ),
        (
            "json-file",
            {"mode": "non-blocking", "max-buffer-size": "x"},
            "error parsing option max-buffer-size: invalid size: 'x'",
        ),
        ("syslog", {"cache-disabled": "x"}, "invalid value for option cache-disabled: x"),
        ("syslog", {"cache-max-file": "x"}, "invalid value for option cache-max-file: x"),
        ("syslog", {"syslog-address": "foo://x"}, "syslog-address should be in form proto://address, got foo://x"),
        ("syslog", {"syslog-facility": "zz"}, "invalid syslog facility"),
        ("syslog", {"syslog-format": "zz"}, "Invalid syslog format"),
        ("gelf", {"gelf-address": "foo"}, "gelf-address should be in form proto://address, got foo"),
        ("gelf", {"gelf-address": "unix:///x"}, "gelf: endpoint needs to be TCP or UDP"),
        ("gelf", {"gelf-address": "udp://x"}, "gelf: please provide gelf-address as proto://host:port"),
        ("gelf", UDP | {"gelf-tcp-max-reconnect": "3"}, '"gelf-tcp-max-reconnect" is only valid for TCP'),
        ("gelf", TCP | {"gelf-compression-type": "gzip"}, "compression is only supported on UDP"),
        (
            "gelf",
            UDP | {"gelf-compression-type": "z"},
            'unknown value "z" for log opt "gelf-compression-type" for gelf log driver',
        ),
        (
            "gelf",
            UDP | {"gelf-compression-level": "10"},
            'unknown value "10" for log opt "gelf-compression-level" for gelf log driver',
        ),
        ("gelf", TCP | {"gelf-tcp-reconnect-delay": "x"}, '"gelf-tcp-reconnect-delay" must be a positive integer'),
        ("gelf", TCP | {"gelf-tcp-max-reconnect": "-1"}, '"gelf-tcp-max-reconnect" must be a positive integer'),
        ("fluentd", {"fluentd-retry-wait": "z"}, 'time: invalid duration "z"'),
        ("fluentd", {"fluentd-async": "x"}, 'strconv.ParseBool: parsing "x": invalid syntax'),
        ("fluentd", {"fluentd-buffer-limit": "x"}, "invalid size: 'x'"),
        ("fluentd", {"fluentd-max-retries": "x"}, 'strconv.ParseUint: parsing "x": invalid syntax'),
        ("fluentd", {"fluentd-max-retries": "4294967295"}, "invalid fluentd-max-retries: value out of range"),
        (
            "fluentd",
            {"fluentd-async": "1", "fluentd-async-connect": "1"},
            (
                "conflicting options: cannot specify both 'fluentd-async' and 'fluentd-async-connect', "
                "use 'fluentd-async' only"
            ),
        ),
        (
            "fluentd",
            {"fluentd-async-reconnect-interval": "1h"},
            "invalid value for fluentd-async-reconnect-interval: value (1h) must be between 100ms and 10s",
        ),
    ],
)
def test_what_dockerd_refuses_is_refused_in_its_words(driver: str, options: dict[str, str], words: str) -> None:
    with pytest.raises(ValueError) as caught:
        check_log_options(driver, options)
    assert str(caught.value) == words


def test_other_values() -> None:
    assert [parse_bool(text) for text in ("1", "T", "true", "0", "False")] == [True, True, True, False, False]
    assert parse_int("-5") == -5
    assert [parse_duration(text) for text in ("0", "1m30s", "100ms", "1.5h")] == [0, 90, 0.1, 5400]
    assert [parse_facility(text) for text in ("", "kern", "local7", "23")] == [3, 0, 23, 23]
    for text in ("24", "-1", "x"):
        with pytest.raises(ValueError):
            parse_facility(text)


def test_addresses() -> None:
    assert parse_syslog_address("") == Address("", "")
    assert parse_syslog_address("tcp+tls://h:1") == Address("tcp+tls", "h:1")
    assert parse_syslog_address("udp://[::1]") == Address("udp", "[::1]:514")
    assert parse_syslog_address("udp://h") == Address("udp", "h:514")
    assert parse_syslog_address("unixgram:///dev/log") == Address("unixgram", "/dev/log")
    assert parse_gelf_address("tcp://[::1]:9") == Address("tcp", "[::1]:9")
    assert parse_fluentd_address("") == Address("tcp", "127.0.0.1:24224")
    assert parse_fluentd_address("h") == Address("tcp", "h:24224")
    assert parse_fluentd_address("tls://h:1/") == Address("tls", "h:1")
    assert parse_fluentd_address("unix:///s") == Address("unix", "/s")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("foo://x", "unsupported scheme: 'foo'"),
        ("unix://", "path is empty"),
        ("tcp://h/x", "should not contain a path element"),
        ("h:x", 'strconv.Atoi: parsing "x": invalid syntax'),
    ],
)
def test_fluentd_addresses_that_are_none(text: str, words: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_fluentd_address(text)
    assert str(caught.value) == f"invalid fluentd-address {text}: {words}"
