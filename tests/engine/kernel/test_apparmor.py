"""Docker's AppArmor profile: what it forbids, and that it is loaded when it is missing and only then."""

from __future__ import annotations

import re
import stat
from pathlib import Path

import pytest

from engine.kernel import apparmor


def _denied_writes(text: str) -> list[re.Pattern[str]]:
    found = []
    for pattern, access in re.findall(r"^  deny (\S+) (\S+),$", text, re.MULTILINE):
        assert "w" in access
        expression = pattern.replace("@{PROC}", "/proc").replace("{", "(").replace("}", ")").replace(",", "|")
        expression = expression.replace("**", "\0").replace("*", "[^/]*").replace("\0", ".*")
        found.append(re.compile(expression))
    return found


@pytest.mark.parametrize(
    ("path", "denied"),
    [
        ("/proc/version", True),
        ("/proc/sysrq-trigger", True),
        ("/proc/1/oom_score_adj", False),
        ("/proc/17/attr/current", False),
        ("/proc/irq/1/smp_affinity", True),
        ("/proc/scsi/scsi", True),
        ("/proc/bus/pci/00", True),
        ("/proc/sys/vm/swappiness", True),
        ("/proc/sys/kernel/core_pattern", True),
        ("/proc/sys/kernel/shmmax", False),
        ("/sys/class/net/eth0/mtu", True),
        ("/sys/fs/bpf/x", True),
        ("/sys/fs/cgroup/pids.max", False),
        ("/sys/firmware/efi/x", True),
        ("/etc/passwd", False),
    ],
)
def test_what_leads_to_the_host_is_not_written(path: str, denied: bool) -> None:
    patterns = _denied_writes(apparmor.profile_text("docker-default", "unconfined", tunables=True, base=True))
    assert any(pattern.fullmatch(path) for pattern in patterns) is denied


def test_the_files_that_a_profile_includes_need_not_be_there() -> None:
    bare = apparmor.profile_text("docker-default", "/usr/bin/berth", tunables=False, base=False)
    assert bare.startswith("@{PROC}=/proc/\nprofile docker-default ")
    assert "#include" not in bare
    assert "signal (receive) peer=/usr/bin/berth," in bare


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A host with the kernel's list of profiles and a parser that keeps what it is given."""
    parser = tmp_path / "bin" / "apparmor_parser"
    parser.parent.mkdir()
    parser.write_text(f'#!/bin/sh\necho "$*" >{tmp_path}/called\ncat >{tmp_path}/given\n')
    parser.chmod(parser.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(apparmor, "_PATH", str(parser.parent))
    monkeypatch.setattr(apparmor, "_SECURITY", tmp_path)
    (tmp_path / "profiles").write_text("lsb_release (enforce)\n")
    return tmp_path


def test_a_missing_profile_is_loaded(host: Path) -> None:
    apparmor.ensure_sync("docker-default")
    assert (host / "called").read_text() == "-Kr\n"
    assert "profile docker-default " in (host / "given").read_text()


def test_a_loaded_profile_is_left_alone(host: Path) -> None:
    (host / "profiles").write_text("docker-default (enforce)\nx (complain)\n")
    apparmor.ensure_sync("docker-default")
    assert not (host / "called").exists()


def test_why_it_could_not_be_loaded_is_said_in_dockerds_words(host: Path) -> None:
    (host / "bin" / "apparmor_parser").write_text("#!/bin/sh\ncat >/dev/null\necho no right >&2\nexit 1\n")
    with pytest.raises(OSError, match="docker-default profile could not be loaded: .*: no right"):
        apparmor.ensure_sync("docker-default")


def test_without_the_parser_nothing_is_confined(host: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apparmor, "is_enabled_sync", lambda: True)
    monkeypatch.delenv("container", raising=False)
    assert apparmor.is_supported_sync()
    monkeypatch.setenv("container", "lxc")
    assert not apparmor.is_supported_sync()
    monkeypatch.delenv("container")
    (host / "bin" / "apparmor_parser").unlink()
    assert not apparmor.is_supported_sync()
