"""Specifications given to a real runtime: what the settings promise is what the process finds."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.containers.defaults import DaemonDefaults, with_defaults
from engine.containers.hostprobe import all_devices_sync, device_nodes_sync, probe_host_sync
from engine.containers.mounts import plan_mounts
from engine.containers.security import DEFAULT_CAPABILITIES, granted_capabilities
from engine.containers.settings import ContainerConfig, HostConfig, Mount, TmpfsOptions, Ulimit
from engine.containers.spec import SpecInput, build_spec
from engine.containers.users import resolve_user
from engine.containers.validation import validate_create

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(not shutil.which("runc") or not Path("/bin/busybox").exists(), reason="needs runc and busybox"),
]

PASSWD = "root:x:0:0:root:/root:/bin/sh\nwww:x:33:33:www:/:/bin/sh\n"
GROUP = "root:x:0:\nwww:x:33:\nstaff:x:50:www\n"
Run = Callable[..., str]


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    """Run one shell script in a container with these settings; its output, standard error included."""
    rootfs = tmp_path / "rootfs"
    for folder in ("bin", "etc", "tmp", "proc", "sys", "dev", "srv"):
        (rootfs / folder).mkdir(parents=True)
    shutil.copy("/bin/busybox", rootfs / "bin" / "busybox")
    for name in ("sh", "cat", "id", "mount", "ls", "grep", "touch", "df", "hostname", "stat", "mkdir", "unshare"):
        (rootfs / "bin" / name).symlink_to("busybox")
    facts = probe_host_sync()
    name = f"berth-spec-{os.getpid()}-{tmp_path.name}"[:60]

    def run_once(script: str, host: HostConfig | None = None, **config: Any) -> str:
        wish = ContainerConfig(cmd=("/bin/sh", "-c", script), **config)
        asked = host or HostConfig()
        findings = validate_create(wish, asked, facts)
        complete = with_defaults(asked, facts, DaemonDefaults(), findings.discarded)
        spec = build_spec(
            SpecInput(
                config=wish,
                host=complete,
                facts=facts,
                user=resolve_user(wish.user, PASSWD, GROUP, complete.group_add or ()),
                rootfs=str(rootfs),
                cgroup_path=f"/{name}",
                hostname="story",
                netns="",
                mounts=plan_mounts(wish, complete),
                lookup_device=device_nodes_sync,
                host_devices=all_devices_sync(),
            )
        )
        (tmp_path / "config.json").write_text(json.dumps(spec))
        done = subprocess.run(
            ["runc", "--root", str(tmp_path / "state"), "run", "--bundle", str(tmp_path), name],
            capture_output=True, text=True, timeout=30, stdin=subprocess.DEVNULL, check=False,
        )  # fmt: skip
        return done.stdout + done.stderr

    yield run_once
    for controller in Path("/sys/fs/cgroup").glob(f"**/{name}"):
        _remove_cgroup(controller)


def _remove_cgroup(folder: Path) -> None:
    """The kernel lets go of a cgroup some time after its last process."""
    for _ in range(40):
        try:
            folder.rmdir()
        except FileNotFoundError:
            return
        except OSError:
            time.sleep(0.05)
        else:
            return


def status_line(text: str, key: str) -> str:
    return next(line.split(":")[1].strip() for line in text.splitlines() if line.startswith(f"{key}:"))


def mask(names: tuple[str, ...]) -> str:
    from engine.containers.security import ALL_CAPABILITIES

    return f"{sum(1 << ALL_CAPABILITIES.index(name) for name in names):016x}"


def test_the_plain_container_is_dockers(run: Run) -> None:
    status = run("cat /proc/1/status")
    assert status_line(status, "CapEff") == mask(DEFAULT_CAPABILITIES)
    assert status_line(status, "CapBnd") == mask(DEFAULT_CAPABILITIES)
    assert status_line(status, "Seccomp") == "2"
    assert status_line(status, "NoNewPrivs") == "0"
    assert "permission denied" in run("mkdir -p /tmp/x; mount -t tmpfs none /tmp/x")
    assert run("cat /proc/keys /proc/timer_list") == ""
    assert "Read-only file system" in run("echo x > /proc/sys/kernel/domainname")


def test_privileged_gets_what_the_daemon_has(run: Run) -> None:
    status = run("cat /proc/1/status", HostConfig(privileged=True))
    assert status_line(status, "CapEff") == mask(granted_capabilities(HostConfig(privileged=True), probe_host_sync()))
    assert status_line(status, "Seccomp") == "0"
    assert "done" in run("mkdir -p /tmp/x && mount -t tmpfs none /tmp/x && echo done", HostConfig(privileged=True))


def test_another_user_has_no_capabilities(run: Run) -> None:
    out = run("id; cat /proc/1/status", HostConfig(group_add=("50", "1234")), user="www")
    assert "uid=33 gid=33" in out
    assert "1234" in out.splitlines()[0]
    assert status_line(out, "CapEff") == "0" * 16
    assert status_line(out, "CapBnd") == mask(DEFAULT_CAPABILITIES)


def test_security_options(run: Run) -> None:
    host = HostConfig(security_opt=("no-new-privileges", "seccomp=unconfined"), cap_drop=("ALL",), cap_add=("CHOWN",))
    status = run("cat /proc/1/status", host)
    assert status_line(status, "NoNewPrivs") == "1"
    assert status_line(status, "Seccomp") == "0"
    assert status_line(status, "CapEff") == mask(("CAP_CHOWN",))


def test_a_users_filter_is_obeyed(run: Run) -> None:
    profile = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_ERRNO"}]}
    host = HostConfig(security_opt=(f"seccomp={json.dumps(profile)}",))
    assert "Operation not permitted" in run("mkdir /tmp/new", host)


def test_mounts(run: Run, tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "file").write_text("from the host\n")
    host = HostConfig(
        binds=(f"{tmp_path}/src:/srv/data:ro",),
        tmpfs={"/run": "size=1m,exec"},
        mounts=(Mount(type="tmpfs", target="/t", tmpfs_options=TmpfsOptions(size_bytes=1 << 21, mode=0o1770)),),
        readonly_rootfs=True,
        shm_size=1 << 20,
    )
    out = run("cat /srv/data/file; touch /srv/data/x /root-file; cat /proc/self/mountinfo; stat -c %a /t", host)
    assert "from the host" in out
    assert out.count("Read-only file system") == 2
    lines = {line.split()[4]: line for line in out.splitlines() if line.count(" ") > 8}
    assert "size=1024k" in lines["/run"]
    assert "noexec" not in lines["/run"].split(" - ")[0]
    assert "size=2048k" in lines["/t"]
    assert "size=1024k" in lines["/dev/shm"]
    assert "1770" in out.split()


def test_limits_are_in_the_cgroup(run: Run) -> None:
    host = HostConfig(
        memory=32 << 20, pids_limit=20, nano_cpus=500_000_000, ulimits=(Ulimit(name="nofile", soft=100, hard=200),),
        oom_score_adj=300,
    )  # fmt: skip
    out = run(
        "cd /sys/fs/cgroup; cat /proc/self/oom_score_adj; ulimit -n; ulimit -Hn;"
        "cat memory/memory.limit_in_bytes cpu/cpu.cfs_quota_us pids/pids.max || cat memory.max cpu.max pids.max",
        host,
    )
    assert {"300", "100", "200", str(32 << 20), "50000", "20"} <= set(out.split())


def test_devices(run: Run) -> None:
    from engine.containers.settings import DeviceMapping

    host = HostConfig(devices=(DeviceMapping(path_on_host="/dev/null", path_in_container="/dev/mine"),))
    assert "1:3" in run("stat -c %t:%T /dev/mine", host).strip()
    privileged = run("ls /dev", HostConfig(privileged=True))
    assert {"null", "zero", "full"} <= set(privileged.split())


def test_names_and_sysctls(run: Run) -> None:
    host = HostConfig(sysctls={"kernel.msgmax": "9999"})
    out = run("hostname; cat /proc/sys/kernel/domainname /proc/sys/kernel/msgmax", host, domainname="d.example")
    assert out.split() == ["story", "d.example", "9999"]
