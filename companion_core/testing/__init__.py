"""The conformance kit and the fakes, shipped for plugin authors; none of it needs pytest.

`__all__` is what authors build on. The folder has no closed face: the demo, the trial of plugins
and the pytest plugin also import its modules (`plugin_kit`, `tls_host`, `certificate_authority`),
because handing those out here would make authors' tests load them and promise them to authors.
"""

from companion_core.testing.downloader_kit import check_downloader
from companion_core.testing.fake_keychain import FakeKeychain
from companion_core.testing.fakes import (
    FakeDownloader,
    FakeHealthChecker,
    FakeProbe,
    FakeSpawner,
    write_fake_runtime,
)
from companion_core.testing.health_kit import check_health_checker
from companion_core.testing.keychain_kit import check_keychain
from companion_core.testing.model_host import Misbehaviour, ModelHost
from companion_core.testing.model_hub import HUB_TOKEN, HubMisbehaviour, ModelHub
from companion_core.testing.probe_kit import check_probe
from companion_core.testing.rulebook import KIT_VERSION, Untried
from companion_core.testing.runtime_kit import check_runtime
from companion_core.testing.spawn_requests import TCP, UNIX, accepted_plan, spawn_request
from companion_core.testing.spawner_kit import SpawnerAbilities, check_spawner

__all__ = [
    "HUB_TOKEN",
    "KIT_VERSION",
    "TCP",
    "UNIX",
    "FakeDownloader",
    "FakeHealthChecker",
    "FakeKeychain",
    "FakeProbe",
    "FakeSpawner",
    "HubMisbehaviour",
    "Misbehaviour",
    "ModelHost",
    "ModelHub",
    "SpawnerAbilities",
    "Untried",
    "accepted_plan",
    "check_downloader",
    "check_health_checker",
    "check_keychain",
    "check_probe",
    "check_runtime",
    "check_spawner",
    "spawn_request",
    "write_fake_runtime",
]
