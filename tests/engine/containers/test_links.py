"""What a linked container's environment says."""

from __future__ import annotations

from engine.containers.links import link_environment, links_of
from tests.support.containers import container


def test_name_port_and_environment_of_the_linked_container() -> None:
    found = link_environment("web", "my-db", "172.17.0.2", ["53/udp", "5432/tcp"], ["POSTGRES=1", "PATH=/bin", "EMPTY"])
    assert found == [
        "MY_DB_NAME=/web/my-db",
        "MY_DB_PORT=tcp://172.17.0.2:5432",
        "MY_DB_PORT_5432_TCP=tcp://172.17.0.2:5432",
        "MY_DB_PORT_5432_TCP_ADDR=172.17.0.2",
        "MY_DB_PORT_5432_TCP_PORT=5432",
        "MY_DB_PORT_5432_TCP_PROTO=tcp",
        "MY_DB_PORT_53_UDP=udp://172.17.0.2:53",
        "MY_DB_PORT_53_UDP_ADDR=172.17.0.2",
        "MY_DB_PORT_53_UDP_PORT=53",
        "MY_DB_PORT_53_UDP_PROTO=udp",
        "MY_DB_ENV_POSTGRES=1",
    ]


def test_a_container_without_ports_has_only_a_name() -> None:
    assert link_environment("web", "db", "172.17.0.2", [], []) == ["DB_NAME=/web/db"]


def test_links_by_name_and_alias() -> None:
    linking = container(1, name="app", host={"links": ("db:/mysql", "/cache", "web:front")})
    assert links_of(linking.host_config) == [("db", "mysql"), ("cache", "cache"), ("web", "front")]


def test_on_a_users_network_links_are_names_of_that_network() -> None:
    linking = container(1, host={"links": ("nobody:db",), "network_mode": "front"})
    assert links_of(linking.host_config) == []
