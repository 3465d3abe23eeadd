"""`companion manifest add` of a file that is already published, over real TLS."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from companion_core.cli import main
from companion_core.egress.live import LiveEgress
from companion_core.testing.certificate_authority import CertificateAuthority
from companion_core.testing.model_host import Misbehaviour, ModelHost
from companion_core.testing.tls_host import TlsHost

pytestmark = pytest.mark.integration

DATA = b"published" * 200_000


def add(url: str, authority: CertificateAuthority) -> int:
    options = ["--id", "tiny", "--url", "https://models.example.org/tiny.gguf", "--format", "gguf"]
    extra = ["--extra-ca-file", str(authority.ca_file), "--json"]
    return main(["manifest", "add", "pub", url, *options, *extra], egress=LiveEgress())


@pytest.fixture
def authority(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CertificateAuthority:
    monkeypatch.chdir(tmp_path)
    assert main(["manifest", "init", "pub", "--key-out", "key.pem"], egress=LiveEgress()) == 0
    return CertificateAuthority(tmp_path)


def test_a_published_file_is_measured(
    authority: CertificateAuthority, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    with TlsHost(authority.server_context(), {"/m.gguf": DATA}) as host:
        assert add(host.url("/m.gguf"), authority) == 0
        added = json.loads(capsys.readouterr().out)
        assert (added["size"], added["sha256"]) == (len(DATA), hashlib.sha256(DATA).hexdigest())
        assert add(host.url("/nothing"), authority) == 4


def test_what_is_cut_off_or_moved_is_not_entered(
    authority: CertificateAuthority, tmp_path: Path
) -> None:
    before = (tmp_path / "pub" / "draft.json").read_bytes()
    with ModelHost(authority.server_context(), {"/m.gguf": DATA}) as host:
        host.misbehave = Misbehaviour(close_after=100)
        assert add(host.url("/m.gguf"), authority) == 4
        host.misbehave = Misbehaviour(status=302, location="/elsewhere")
        assert add(host.url("/m.gguf"), authority) == 2
    assert (tmp_path / "pub" / "draft.json").read_bytes() == before


def test_the_authoritys_key_stays_in_memory(authority: CertificateAuthority) -> None:
    authority.server_context()
    folder = authority.ca_file.parent
    assert list(folder.glob(".*.pem")) == []
    assert b"PRIVATE" not in authority.ca_file.read_bytes()
