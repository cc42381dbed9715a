"""What a shim is told of its log."""

from __future__ import annotations

import pytest

from engine.containers.logsettings import log_file_name, plan_log
from engine.containers.logtag import LogSubject

SUBJECT = LogSubject(
    id="c" * 64,
    name="web",
    image="nginx",
    image_id="sha256:1",
    command="sh",
    created="2024-01-01T00:00:00Z",
    hostname="host",
    labels={"my.team": "blue"},
    env=("A=1",),
)


def test_none_keeps_nothing() -> None:
    plan = plan_log("none", {"x": "y"}, SUBJECT)
    assert (plan.driver, plan.file_name, plan.sink) == ("none", "", {})


@pytest.mark.parametrize(
    ("driver", "options", "name"),
    [
        ("json-file", {}, f"{'c' * 64}-json.log"),
        ("local", {}, "container-local.log"),
        ("syslog", {}, "container-cached.log"),
        ("syslog", {"cache-disabled": "false"}, "container-cached.log"),
        ("gelf", {"cache-disabled": "true"}, ""),
        ("none", {}, ""),
    ],
)
def test_where_the_log_is_read(driver: str, options: dict[str, str], name: str) -> None:
    assert log_file_name(driver, options, SUBJECT.id) == name


def test_json_file() -> None:
    options = {"max-size": "1m", "max-file": "3", "compress": "true", "labels": "my.team", "tag": "{{.Name}}"}
    plan = plan_log("json-file", options, SUBJECT)
    assert plan.rotation == {"max-size": "1000000", "max-file": "3", "compress": "true"}
    assert plan.attributes == {"my.team": "blue", "tag": "web"}
    assert plan.buffer_bytes is None
    assert plan_log("json-file", {}, SUBJECT).attributes == {}


def test_local_and_the_cache_have_limits_of_their_own() -> None:
    default = {"max-size": str(20 << 20), "max-file": "5", "compress": "true"}
    assert plan_log("local", {}, SUBJECT).rotation == default
    assert plan_log("journald", {"max-file": "9"}, SUBJECT).rotation == default
    changed = plan_log("local", {"max-size": "1k", "max-file": "1"}, SUBJECT).rotation
    assert changed == {"max-size": "1000", "max-file": "1", "compress": "false"}
    cache = {"cache-max-size": "1k", "cache-max-file": "2", "cache-compress": "false"}
    assert plan_log("journald", cache, SUBJECT).rotation == {"max-size": "1000", "max-file": "2", "compress": "false"}


def test_the_mode_non_blocking() -> None:
    assert plan_log("json-file", {"mode": "non-blocking"}, SUBJECT).buffer_bytes == 1 << 20
    assert plan_log("local", {"mode": "non-blocking", "max-buffer-size": "4m"}, SUBJECT).buffer_bytes == 4 << 20
    assert plan_log("fluentd", {"fluentd-async": "true"}, SUBJECT).buffer_bytes == 8 << 20


@pytest.mark.parametrize(
    ("driver", "options", "words"),
    [
        ("json-file", {"max-size": "foo"}, "invalid size: 'foo'"),
        ("json-file", {"max-size": "0"}, "max-size must be a positive number"),
        ("json-file", {"max-file": "0"}, "max-file cannot be less than 1"),
        ("json-file", {"max-file": "x", "max-size": "1m"}, 'strconv.Atoi: parsing "x": invalid syntax'),
        ("json-file", {"compress": "x"}, 'strconv.ParseBool: parsing "x": invalid syntax'),
        (
            "json-file",
            {"compress": "true"},
            "compress cannot be true when max-file is less than 2 or max-size is not set",
        ),
        ("local", {"max-size": "x"}, "invalid value for max-size: x: invalid size: 'x'"),
        ("local", {"max-file": "0"}, "max-file cannot be less than 1"),
        (
            "local",
            {"compress": "x"},
            'error reading compress log option: strconv.ParseBool: parsing "x": invalid syntax',
        ),
        ("local", {"compress": "1", "max-file": "1"}, "compression cannot be enabled when max file count is 1"),
    ],
)
def test_bad_values_are_found_at_the_start(driver: str, options: dict[str, str], words: str) -> None:
    with pytest.raises(ValueError) as caught:
        plan_log(driver, options, SUBJECT)
    assert str(caught.value) == words


def test_syslog() -> None:
    sink = plan_log("syslog", {"syslog-address": "udp://h", "syslog-tls-skip-verify": "false"}, SUBJECT).sink
    assert (sink["network"], sink["address"], sink["facility"], sink["tag"]) == ("udp", "h:514", 3, "c" * 12)
    assert sink["tls"]["skip_verify"] is True


def test_journald() -> None:
    fields = plan_log("journald", {"labels": "my.team", "tag": "t"}, SUBJECT).sink["fields"]
    assert fields == {
        "CONTAINER_ID": "c" * 12,
        "CONTAINER_ID_FULL": "c" * 64,
        "CONTAINER_NAME": "web",
        "CONTAINER_TAG": "t",
        "IMAGE_NAME": "nginx",
        "SYSLOG_IDENTIFIER": "t",
        "MY_TEAM": "blue",
    }


def test_gelf() -> None:
    sink = plan_log("gelf", {"gelf-address": "tcp://h:1", "env": "A"}, SUBJECT).sink
    assert (sink["compression"], sink["level"], sink["reconnects"], sink["delay"]) == ("gzip", 1, 3, 1)
    assert sink["extra"]["_A"] == "1"
    assert sink["extra"]["_created"] == SUBJECT.created


def test_fluentd() -> None:
    sink = plan_log("fluentd", {"fluentd-retry-wait": "500ms", "env": "A", "fluentd-request-ack": "1"}, SUBJECT).sink
    assert sink["record"] == {"container_id": "c" * 64, "container_name": "/web", "A": "1"}
    assert (sink["retry_wait"], sink["ack"], sink["async"]) == (0.5, True, False)
    assert sink["max_retries"] == 2**31 - 1
