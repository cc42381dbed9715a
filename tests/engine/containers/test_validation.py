"""Create requests that dockerd refuses, and its words."""

from __future__ import annotations

import pytest

from engine.containers.host import HostFacts
from engine.containers.settings import (
    ContainerConfig,
    DeviceMapping,
    HealthConfig,
    HostConfig,
    LogConfig,
    Mount,
    PortBinding,
    RestartPolicy,
    Ulimit,
)
from engine.containers.validation import validate_create

FACTS = HostFacts(capabilities=frozenset({"CAP_CHOWN"}))
JOIN = "container:other"


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (ContainerConfig(working_dir="x"), "the working directory 'x' is invalid, it needs to be an absolute path"),
        (ContainerConfig(stop_signal="NOPE"), "invalid signal: NOPE"),
        (ContainerConfig(env=("=x",)), "invalid environment variable: =x"),
        (ContainerConfig(env=("",)), "invalid environment variable: "),
        (ContainerConfig(exposed_ports={"99999/tcp": {}}), "invalid JSON: invalid port '99999': value out of range"),
        (ContainerConfig(healthcheck=HealthConfig(interval=5)), "Interval in Healthcheck cannot be less than 1ms"),
        (ContainerConfig(healthcheck=HealthConfig(start_interval=5)), "StartInterval in Healthcheck cannot be less"),
        (ContainerConfig(healthcheck=HealthConfig(retries=-1)), "Retries in Healthcheck cannot be negative"),
        (ContainerConfig(healthcheck=HealthConfig(test=("WHAT",))), "Unknown healthcheck type: WHAT"),
    ],
)
def test_bad_configurations(config: ContainerConfig, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        validate_create(config, HostConfig(), FACTS)


@pytest.mark.parametrize(
    ("host", "words"),
    [
        (HostConfig(restart_policy=RestartPolicy(name="x")), "invalid restart policy: unknown policy 'x'; use one of"),
        (
            HostConfig(restart_policy=RestartPolicy(name="always", maximum_retry_count=1)),
            "maximum retry count can only be used with 'on-failure'",
        ),
        (
            HostConfig(restart_policy=RestartPolicy(name="no", maximum_retry_count=-1)),
            "'on-failure' and cannot be negative",
        ),
        (
            HostConfig(restart_policy=RestartPolicy(name="on-failure", maximum_retry_count=-1)),
            "maximum retry count cannot be negative",
        ),
        (
            HostConfig(auto_remove=True, restart_policy=RestartPolicy(name="always")),
            "can't create 'AutoRemove' container with restart policy",
        ),
        (HostConfig(extra_hosts=("x",)), 'bad format for add-host: "x"'),
        (HostConfig(extra_hosts=("x:y",)), 'invalid IP address in add-host: "y"'),
        (HostConfig(dns=("x",)), "invalid IP address: x"),
        (HostConfig(port_bindings={"19039;1230": None}), "invalid JSON: invalid port '19039;1230': invalid syntax"),
        (HostConfig(cpu_shares=-1), "invalid CPU shares .-1.: value must be a positive integer"),
        (HostConfig(port_bindings={"80/icmp": None}), 'invalid port specification: "80/icmp"'),
        (HostConfig(port_bindings={"80": (PortBinding(host_port="x"),)}), 'invalid port specification: "x"'),
        (HostConfig(port_bindings={"80": (PortBinding(host_ip="x"),)}), "invalid IP address"),
        (HostConfig(cap_add=("foo",)), 'invalid CapAdd: unknown capability: "CAP_FOO"'),
        (HostConfig(cap_drop=("foo",)), 'invalid CapDrop: unknown capability: "CAP_FOO"'),
        (HostConfig(security_opt=("x=y",)), "invalid --security-opt 2"),
        (HostConfig(devices=(DeviceMapping(path_on_host="/dev/x", cgroup_permissions="q"),)), "invalid device mode"),
        (HostConfig(ipc_mode="x"), "invalid IPC mode: x"),
        (HostConfig(oom_score_adj=1001), r"Invalid value 1001, range for oom score adj is \[-1000, 1000\]"),
        (HostConfig(shm_size=-1), "SHM size can not be less than 0"),
        (HostConfig(annotations={"": "x"}), "invalid Annotations"),
        (HostConfig(ulimits=(Ulimit(name="nofile", soft=2, hard=1),)), "ulimit soft limit must be less than"),
        (HostConfig(log_config=LogConfig(type="splunk")), "failed to initialize logging driver: splunk is not"),
        (HostConfig(log_config=LogConfig(type="x")), "logger: no log driver named 'x' is registered"),
        (HostConfig(runtime="x"), "unknown or invalid runtime name: x"),
        (HostConfig(isolation="hyperv"), "invalid isolation \\(hyperv\\): linux only supports 'default'"),
        (HostConfig(memory=1), "Minimum memory limit allowed is 6MB"),
        (HostConfig(tmpfs={"x": ""}), "invalid mount path: 'x' mount path must be absolute"),
        (HostConfig(binds=("/a:b",)), "invalid volume specification: '/a:b'"),
        (HostConfig(mounts=(Mount(type="x", target="/a"),)), "mount type unknown"),
        (HostConfig(volumes_from=("c:x",)), "invalid mode: x"),
    ],
)
def test_bad_host_configurations(host: HostConfig, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        validate_create(ContainerConfig(), host, FACTS)


@pytest.mark.parametrize(
    ("config", "host", "words"),
    [
        (ContainerConfig(hostname="h"), HostConfig(uts_mode="host"), "hostname and the UTS mode"),
        (
            ContainerConfig(),
            HostConfig(network_mode="host", links=("a",)),
            "host type networking can't be used with links",
        ),
        (ContainerConfig(), HostConfig(network_mode="container:"), "invalid container format container:<name|id>"),
        (ContainerConfig(), HostConfig(network_mode="container"), "invalid container format container:<name|id>"),
        (ContainerConfig(hostname="h"), HostConfig(network_mode=JOIN), "hostname and the network mode"),
        (ContainerConfig(), HostConfig(network_mode=JOIN, links=("a",)), "container type network can't be used with"),
        (ContainerConfig(), HostConfig(network_mode=JOIN, dns=("1.1.1.1",)), "dns and the network mode"),
        (ContainerConfig(), HostConfig(network_mode=JOIN, extra_hosts=("a:1.1.1.1",)), "custom host-to-IP mapping"),
        (ContainerConfig(), HostConfig(network_mode=JOIN, publish_all_ports=True), "port publishing and the container"),
        (
            ContainerConfig(exposed_ports={"1": {}}),
            HostConfig(network_mode=JOIN),
            "port exposing and the container type",
        ),
    ],
)
def test_conflicting_options(config: ContainerConfig, host: HostConfig, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        validate_create(config, host, FACTS)


def test_systemd_wants_slices() -> None:
    with pytest.raises(ValueError, match="cgroup-parent for systemd cgroup"):
        validate_create(ContainerConfig(), HostConfig(cgroup_parent="/x"), FACTS, systemd_cgroup=True)
    validate_create(ContainerConfig(), HostConfig(cgroup_parent="x.slice"), FACTS, systemd_cgroup=True)


def test_a_reasonable_request_passes_without_warnings() -> None:
    config = ContainerConfig(
        working_dir="/", stop_signal="100", env=("A=1", "B"), exposed_ports={"80-81/udp": {}},
        healthcheck=HealthConfig(test=("CMD", "x"), interval=1_000_000),
    )  # fmt: skip
    host = HostConfig(
        network_mode=JOIN.replace("container:", ""),
        extra_hosts=("a:host-gateway", "b:[::1]"),
        port_bindings={"80/tcp": (PortBinding(host_ip="::1", host_port="8000-8010"),)},
        restart_policy=RestartPolicy(name="on-failure", maximum_retry_count=3),
        tmpfs={"/run": "size=1m"},
        binds=("/a:/b",),
        mounts=(Mount(type="tmpfs", target="/t"),),
        volumes_from=("c",),
        ulimits=(Ulimit(name="nofile", soft=-1, hard=-1),),
    )
    assert validate_create(config, host, FACTS).warnings == []


def test_warnings() -> None:
    facts = HostFacts(ipv4_forwarding=False, cgroup_namespaces=False)
    host = HostConfig(cap_add=("SYS_TIME",), cgroupns_mode="private")
    findings = validate_create(ContainerConfig(), host, facts)
    assert [w.split(".")[0] for w in findings.warnings] == [
        "The daemon itself lacks CAP_SYS_TIME on this host",
        "IPv4 forwarding is disabled",
        "Your kernel does not support cgroup namespaces",
    ]
    assert findings.discarded == ["cgroupns_mode"]
    published = HostConfig(network_mode="host", port_bindings={"80/tcp": ()})
    assert validate_create(ContainerConfig(), published, facts).warnings == [
        "Published ports are discarded when using host network mode"
    ]
