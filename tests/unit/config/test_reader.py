import os
import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from companion_core.config.reader import load_config, parse_config, with_model
from companion_core.config.sections import SECTIONS, Config
from companion_core.errors import Reason, UsageError

pytestmark = pytest.mark.unit

# The public key of RFC 8032, section 7.1, test 2.
KEY = "ed25519:PUAXw+hDiVqStwqnTRt+vJyYLM8uxJaMwM1V8Sr0Zgw="

THREE_LINES = """\
manifest.url = "https://models.example.org/companion/manifest.json"
manifest.trusted_keys = ["ed25519:PUAXw+hDiVqStwqnTRt+vJyYLM8uxJaMwM1V8Sr0Zgw="]
model.id = "tiny"
"""

FULL = """\
[manifest]
url = "https://models.example.org/companion/manifest.json"
trusted_keys = ["ed25519:PUAXw+hDiVqStwqnTRt+vJyYLM8uxJaMwM1V8Sr0Zgw="]

[model]
id = "qwen2.5-0.5b-instruct-q4"

[runtime]
name = "llamacpp"
binary = "/usr/local/bin/llama-server"
binary_sha256 = "0000000000000000000000000000000000000000000000000000000000000000"
context_length = 4096
threads = 4
isolation = "best"
unsafe_open_backend = false

[keychain]
name = "linux"

[gateway]
port = 0
requests_per_minute = 600
max_in_flight = 2
queue_bound = 16
queue_deadline_seconds = 30

[runtime.options]
flash_attention = true

[network]
extra_ca_file = "/etc/ssl/company-ca.pem"

[limits]
max_ram_bytes = 8_000_000_000
max_vram_bytes = 8_000_000_000
max_cpu_percent = 100
"""


def parse(text: str) -> Config:
    return parse_config(tomllib.loads(text), source="c.toml", text=text)


def refusal(text: str) -> UsageError:
    with pytest.raises(UsageError) as caught:
        parse(text)
    assert caught.value.reason is Reason.CONFIGURATION_INVALID
    assert caught.value.exit_code == 2
    return caught.value


def test_three_lines_are_a_configuration_with_safe_defaults():
    config = parse(THREE_LINES)
    assert config.model.id == "tiny"
    assert config.manifest.trusted_keys == (KEY,)
    assert config.runtime.unsafe_open_backend is False
    assert config.runtime.binary is None
    assert config.keychain.name is None
    assert config.gateway.port == 0
    assert (config.gateway.max_in_flight, config.gateway.queue_bound) == (2, 16)


def test_every_documented_key_is_known():
    config = parse(FULL)
    assert config.runtime.options == {"flash_attention": True}
    assert config.limits.max_vram_bytes == 8_000_000_000
    assert config.network.extra_ca_file == "/etc/ssl/company-ca.pem"


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        (
            "threads = 4",
            "thread = 4",
            "c.toml:13: unknown key runtime.thread; did you mean threads?",
        ),
        ("[limits]", "[limit]", "unknown key limit; did you mean limits?"),
        ("threads = 4", "threads = true", "c.toml:13: runtime.threads must be 1 to 1024"),
        ("threads = 4", "threads = 0", "runtime.threads must be"),
        ("port = 0", "port = 70000", "gateway.port must be"),
        ("port = 0", 'port = "0"', "gateway.port must be"),
        ('url = "https://', 'url = "http://', "c.toml:2: manifest.url must be"),
        ('url = "https://', 'url = "https://someone@', "c.toml:2: manifest.url must be"),
        ('url = "https://', 'url = "https:///', "c.toml:2: manifest.url must be"),
        ('url = "https://', 'url = "https://a b.', "c.toml:2: manifest.url must be"),
        (f'["{KEY}"]', "[]", "manifest.trusted_keys must be"),
        (KEY, "ed25519:abc", "manifest.trusted_keys must be"),
        (KEY, "ed25519:AQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=", "trusted_keys must be"),
        ('isolation = "best"', 'isolation = "none"', 'must be "best" or "required"'),
        ('isolation = "best"', "isolation = []", 'must be "best" or "required"'),
        ('binary = "/usr', 'binary = "usr', "runtime.binary must be an absolute path"),
        ("flash_attention = true", "flash_attention = [1]", "runtime.options must be"),
        ("max_cpu_percent = 100", "max_cpu_percent = 101", "limits.max_cpu_percent must be"),
        ("max_cpu_percent = 100", "max_cpu_percent = nan", "limits.max_cpu_percent must be"),
        ("queue_bound = 16", "queue_bound = 16.5", "gateway.queue_bound must be"),
    ],
)
def test_a_mistake_is_named_with_its_line(old, new, says):
    assert old in FULL
    assert says in refusal(FULL.replace(old, new, 1)).detail


def test_a_mistake_in_a_dotted_key_has_its_line_too():
    detail = refusal(THREE_LINES.replace("model.id", "model.ids")).detail
    assert detail == "c.toml:3: unknown key model.ids; did you mean id?"


@pytest.mark.parametrize("missing", ["manifest.url", "manifest.trusted_keys"])
def test_a_key_without_a_safe_default_is_required(missing):
    text = "\n".join(line for line in THREE_LINES.splitlines() if not line.startswith(missing))
    assert "missing" in refusal(text).detail


@pytest.mark.skipif(os.name != "posix", reason="there are no such modes")
def test_a_file_that_others_can_change_is_refused(tmp_path):
    path = tmp_path / "c.toml"
    path.write_text(THREE_LINES)
    path.chmod(0o644)
    assert load_config(path).model.id == "tiny"
    path.chmod(0o646)
    with pytest.raises(UsageError) as caught:
        load_config(path)
    assert caught.value.reason is Reason.CONFIGURATION_INVALID
    assert "others" in caught.value.detail


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no such pipes")
def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "c.toml", 0o600)
    with pytest.raises(UsageError, match="configuration_invalid"):
        load_config(tmp_path / "c.toml")


def test_another_model_of_the_manifest_can_be_named_and_is_checked(tmp_path):
    config = parse_config(tomllib.loads(THREE_LINES))
    assert with_model(config, "other").model.id == "other"
    for wrong in ("", "../x", "a b", "x" * 200):
        with pytest.raises(UsageError) as caught:
            with_model(config, wrong)
        assert caught.value.reason is Reason.USAGE


def test_a_file_that_is_no_configuration_is_told(tmp_path):
    for content in (b"\xff\xfe", b"not toml", b"x" * (300 * 1024), b"x = " + b"[" * 20_000):
        path = tmp_path / "c.toml"
        path.write_bytes(content)
        with pytest.raises(UsageError) as caught:
            load_config(path)
        assert caught.value.reason is Reason.CONFIGURATION_INVALID
    with pytest.raises(UsageError, match="configuration_invalid") as caught:
        load_config(tmp_path / "absent.toml")
    assert "--config" in caught.value.detail


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@given(
    st.dictionaries(
        st.sampled_from(sorted(SECTIONS)) | st.text(),
        st.dictionaries(
            st.sampled_from([f for s in SECTIONS.values() for f in s.__dataclass_fields__])
            | st.text(),
            values,
        )
        | values,
    )
)
def test_any_document_is_a_configuration_or_a_refusal(document):
    try:
        outcome = parse_config(document)
    except UsageError as error:
        outcome = error.reason
    assert isinstance(outcome, Config) or outcome is Reason.CONFIGURATION_INVALID
