from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from cli.commands import berth
from cli.serve import flags_to_keys, serve
from engine.config import read_file

# All flags of dockerd 20.10 and 29 but those that are about plugins, Windows or the version.
DOCKERD_FLAGS = """
add-runtime api-cors-header allow-direct-routing allow-nondistributable-artifacts authorization-plugin bip bip6 bridge
bridge-accept-fwmark cdi-spec-dir cgroup-parent config-file containerd containerd-namespace
containerd-plugins-namespace cpu-rt-period cpu-rt-runtime cri-containerd data-root debug default-address-pool
default-cgroupns-mode default-gateway default-gateway-v6 default-ipc-mode default-network-opt default-runtime
default-shm-size default-stop-timeout default-ulimit dns dns-opt dns-search exec-opt exec-root experimental feature
firewall-backend fixed-cidr fixed-cidr-v6 group host host-gateway-ip http-proxy https-proxy icc init init-path
insecure-registry ip ip-forward ip-forward-no-drop ip-masq ip6tables iptables ipv6 label live-restore log-driver
log-format log-level log-opt max-concurrent-downloads max-concurrent-uploads max-download-attempts metrics-addr mtu
network-control-plane-mtu network-diagnostic-port no-new-privileges no-proxy node-generic-resource nri-opts
oom-score-adjust pidfile raw-logs registry-mirror restart rootless seccomp-profile selinux-enabled shutdown-timeout
storage-driver storage-opt swarm-default-advertise-addr tls tlscacert tlscert tlskey tlsverify userland-proxy
userland-proxy-path userns-remap validate
""".split()


def _keys(*arguments: str) -> dict[str, Any]:
    params = serve.make_context("serve", list(arguments)).params
    params.pop("config_file")
    params.pop("validate")
    return flags_to_keys(params)


def test_nothing_given_says_nothing() -> None:
    assert _keys() == {}


def test_flags_become_the_keys_of_daemon_json() -> None:
    found = _keys(
        *("-H", "unix:///a", "-H", "tcp://127.0.0.1:1", "--data-root", "/d", "-D", "--icc=false", "--mtu", "1400"),
        *("--add-runtime", "youki=/usr/bin/youki", "--log-opt", "max-size=1m", "--default-ulimit", "nofile=10:20"),
        *("--default-address-pool", "base=10.0.0.0/8,size=24", "--registry-addr", "none"),
    )
    assert found == {
        "hosts": ["unix:///a", "tcp://127.0.0.1:1"],
        "data-root": "/d",
        "debug": True,
        "icc": False,
        "mtu": 1400,
        "runtimes": {"youki": {"path": "/usr/bin/youki"}},
        "log-opts": {"max-size": "1m"},
        "default-ulimits": {"nofile": {"Name": "nofile", "Soft": 10, "Hard": 20}},
        "default-address-pools": [{"base": "10.0.0.0/8", "size": "24"}],
        "registry-addr": "none",
    }


def test_short_options_may_have_an_equals_sign() -> None:
    assert _keys("-H=0.0.0.0:23756", "-l=debug", "-D=false", "-H", "a=b") == {
        "hosts": ["0.0.0.0:23756", "a=b"],
        "log-level": "debug",
        "debug": False,
    }


def test_every_flag_of_dockerd_is_known() -> None:
    found = _keys(
        *("--ip6tables=false", "--host-gateway-ip", "192.0.2.1", "--default-network-opt", "bridge=a.b=c"),
        *("--default-network-opt", "bridge=d=e", "--userns-remap", "default", "--selinux-enabled", "-r=false"),
        *("--cdi-spec-dir", "/x", "--feature", "cdi=false", "--http-proxy", "http://p", "--no-proxy", "a,b"),
        *("--containerd-plugins-namespace", "p", "--oom-score-adjust", "-500"),
    )
    assert found == {
        "ip6tables": False,
        "host-gateway-ips": ["192.0.2.1"],
        "default-network-opts": {"bridge": {"a.b": "c", "d": "e"}},
        "userns-remap": "default",
        "selinux-enabled": True,
        "restart": False,
        "cdi-spec-dirs": ["/x"],
        "features": {"cdi": "false"},
        "http-proxy": "http://p",
        "no-proxy": "a,b",
        "containerd-plugin-namespace": "p",
        "oom-score-adjust": "-500",
    }
    known = {option.removeprefix("--") for parameter in serve.params for option in parameter.opts}
    assert not [flag for flag in DOCKERD_FLAGS if flag not in known]


def test_every_flag_has_a_key_of_daemon_json(tmp_path: Path) -> None:
    path = tmp_path / "daemon.json"
    for parameter in serve.params:
        if parameter.name not in ("config_file", "validate"):
            (key,) = flags_to_keys({parameter.name: ("a=1",) if parameter.multiple else "x"})
            path.write_text(json.dumps({key: 1}))
            assert key in read_file(path, must_exist=True)


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ('{"no-such-key": 1}', "no-such-key"),
        ("{", "invalid JSON"),
        ('{"mtu": "x"}', "mtu"),
        ("[]", "one JSON object"),
        ('{"registry": {"grant": []}}', "registry: unknown configuration key: grant"),
    ],
)
def test_a_bad_configuration_is_refused_with_its_name(tmp_path: Path, document: str, words: str) -> None:
    path = tmp_path / "daemon.json"
    path.write_text(document)
    result = CliRunner().invoke(berth, ["serve", "--config-file", str(path), "--validate"])
    assert result.exit_code == 1
    assert words in result.output


def test_a_good_configuration_is_said_to_be_good(tmp_path: Path) -> None:
    path = tmp_path / "daemon.json"
    path.write_text('{"data-root": "/x", "log-level": "debug", "registry": {"immutable": ["**:v*"]}}')
    result = CliRunner().invoke(berth, ["serve", "--config-file", str(path), "--validate"])
    assert (result.exit_code, result.output) == (0, "configuration OK\n")
