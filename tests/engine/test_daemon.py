"""What the composition root makes of the configuration; that it composes is seen in the system stories."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.config import LOG_LEVELS, Config
from engine.daemon import registry_settings
from registry.configvalues import ConfigError


def test_the_registry_lies_below_the_data_root_and_hears_of_daemon_json(tmp_path: Path) -> None:
    config = Config(data_root=tmp_path, registry_addr="127.0.0.1:5001", registry={"immutable": ["**:v*"]})
    settings = registry_settings(config)
    assert (settings.root, settings.listen_on()) == (tmp_path / "registry", ("127.0.0.1", 5001))
    with pytest.raises(ConfigError, match="registry: "):
        registry_settings(Config(data_root=tmp_path, registry={"immutabel": []}))


def test_an_engine_may_have_no_registry(tmp_path: Path) -> None:
    registry_settings(Config(data_root=tmp_path, registry_addr="none"))


@pytest.mark.parametrize("level", LOG_LEVELS)
def test_every_level_of_the_daemons_log_leaves_the_registry_in_peace(tmp_path: Path, level: str) -> None:
    assert registry_settings(Config(data_root=tmp_path, log_level=level)).root == tmp_path / "registry"
