from __future__ import annotations

from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from cli import containers, run_options
from cli.run_options import create_body, environment, parse_ports, parse_size


@pytest.mark.parametrize(
    ("text", "expected"),
    [("5", 5), ("5b", 5), ("2k", 2048), ("1.5m", 1572864), ("1g", 1 << 30), ("1GB", 1 << 30), ("2KB", 2048)],
)
def test_sizes(text: str, expected: int) -> None:
    assert parse_size(text) == expected


@pytest.mark.parametrize("text", ["x", "5q", "k"])
def test_bad_sizes(text: str) -> None:
    with pytest.raises(click.BadParameter, match="invalid size"):
        parse_size(text)


@pytest.mark.parametrize(
    ("spec", "bindings"),
    [
        ("80", {"80/tcp": [("", "")]}),
        ("8080:80", {"80/tcp": [("", "8080")]}),
        ("127.0.0.1:8080:80/udp", {"80/udp": [("127.0.0.1", "8080")]}),
        ("[::1]:8080:80", {"80/tcp": [("::1", "8080")]}),
        ("127.0.0.1::80", {"80/tcp": [("127.0.0.1", "")]}),
        ("8000-8001:80-81", {"80/tcp": [("", "8000")], "81/tcp": [("", "8001")]}),
        ("8000-8005:80", {"80/tcp": [("", "8000-8005")]}),
    ],
)
def test_ports(spec: str, bindings: dict[str, list[tuple[str, str]]]) -> None:
    exposed, found = parse_ports([spec])
    assert {key: [(b["HostIp"], b["HostPort"]) for b in values] for key, values in found.items()} == bindings
    assert exposed.keys() == bindings.keys()


@pytest.mark.parametrize("spec", ["x", "1:x", "70000", "8000-8001:80-82", "5-4"])
def test_bad_ports(spec: str) -> None:
    with pytest.raises(click.BadParameter, match="invalid"):
        parse_ports([spec])


def test_environment_takes_files_first_and_bare_names_from_us(tmp_path: Path) -> None:
    file = tmp_path / "env"
    file.write_text("# a comment\n\nA=1\nHOME\n")
    found = environment(["B=2", "HOME", "ABSENT"], [str(file)], {"HOME": "/h"})
    assert found == ["A=1", "HOME=/h", "B=2", "HOME=/h"]


def _options(*arguments: str) -> dict[str, object]:
    context = containers.run.make_context("run", [*arguments, "busybox", "echo", "-n", "hi"])
    return create_body(context.params.pop("image"), context.params.pop("command"), context.params)


def test_an_attached_run() -> None:
    body = _options("-i", "-t", "--rm", "-e", "A=1", "-l", "k=v", "-m", "64m", "--cpus", "1.5", "--init")
    assert body["Cmd"] == ["echo", "-n", "hi"]
    assert (body["Tty"], body["OpenStdin"], body["StdinOnce"], body["AttachStdin"]) == (True, True, True, True)
    assert body["Labels"] == {"k": "v"}
    host = body["HostConfig"]
    assert isinstance(host, dict)
    assert (host["Memory"], host["NanoCpus"], host["Init"], host["AutoRemove"]) == (64 << 20, 1_500_000_000, True, True)


def test_a_detached_run_attaches_nothing() -> None:
    body = _options("-d", "-v", "/a:/b:ro", "-v", "/anon", "--restart", "on-failure:3", "--tmpfs", "/t:size=1m")
    assert (body["AttachStdin"], body["AttachStdout"], body["AttachStderr"]) == (False, False, False)
    host = body["HostConfig"]
    assert isinstance(host, dict)
    assert host["Binds"] == ["/a:/b:ro"]
    assert body["Volumes"] == {"/anon": {}}
    assert host["RestartPolicy"] == {"Name": "on-failure", "MaximumRetryCount": 3}
    assert host["Tmpfs"] == {"/t": "size=1m"}
    assert "Entrypoint" not in body


@pytest.mark.parametrize(("given", "expected"), [("/bin/x", ["/bin/x"]), ("", [""])])
def test_entrypoint_can_be_replaced_and_cleared(given: str, expected: list[str]) -> None:
    assert _options("--entrypoint", given)["Entrypoint"] == expected


def test_options_after_the_image_belong_to_the_command() -> None:
    result = CliRunner().invoke(containers.run, ["--help"])
    assert result.exit_code == 0
    assert "--read-only" in result.output
    assert run_options.parse_pairs(["a", "b=c=d"]) == {"a": "", "b": "c=d"}
