"""Attacker: a secret on its way into a support request, in any wrapping."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from companion_core.doctor.redaction import Redactor, shown_url

pytestmark = pytest.mark.security

TOKEN = "Zm9v-the_session_token"
REDACTOR = Redactor.of(secrets=[TOKEN, "ab"], places=[("/srv/person", "[home]"), ("/", "[root]")])


@pytest.mark.parametrize(
    ("text", "gone"),
    [
        (f"a {TOKEN} b", TOKEN),
        ("Authorization: Bearer hunter2", "hunter2"),
        ("authorization=Basic aHVudGVyMg==", "aHVudGVyMg"),
        ("header Bearer hunter2 end", "hunter2"),
        ("Cookie: a=hunter2; b=c", "hunter2"),
        ("https://person:hunter2@host.example/x", "hunter2"),
        ("https://host.example/x?sig=hunter2", "hunter2"),
        ("https://host.example/x#hunter2", "hunter2"),
        ("socks5://person:hunter2@proxy.example:1080", "hunter2"),
        ("password = hunter2", "hunter2"),
        ('"api_key": "hunter2 and more"', "hunter2"),
        ("LLAMA_API_KEY=hunter2", "hunter2"),
        ("client_secret: 'hunter2'", "hunter2"),
        ("refresh-token hunter=1 access_token=hunter2", "hunter2"),
        ("digest " + "0123456789abcdef" * 4, "0123456789abcdef0123"),
        ("key ed25519:11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=", "7TyWQHOg7hcv"),
        ("sk-hunter2hunter2 was refused", "hunter2"),
        ("ghp_hunter2hunter2", "hunter2"),
        ("/srv/person/letters", "person"),
        ("/home/alice/letters", "alice"),
        ("/Users/alice/letters", "alice"),
        (r"C:\Users\alice\letters", "alice"),
    ],
)
def test_a_secret_is_redacted(text, gone):
    assert gone not in REDACTOR.text(text)


@pytest.mark.parametrize(
    "text",
    [
        "https://models.example.org/companion/tiny.gguf",
        "companion: keychain_locked: Unlock the keychain and run the command again.",
        "embedded: a module of the plugin, whose files are hashed",
        "version 3, signed by a trusted key, 12.0 days left, 1 models",
        "llamacpp for gguf: llama.cpp, embedded 2026.10.11549",
        "needs state-folder",
    ],
)
def test_text_that_helps_stays(text):
    assert REDACTOR.text(text) == text


def test_the_root_folder_is_not_redacted():
    assert REDACTOR.text("/usr/bin/llama-server") == "/usr/bin/llama-server"


@given(st.text(max_size=200), st.text(max_size=200), st.text(min_size=6, max_size=80))
def test_a_known_secret_never_survives(before, after, secret):
    redactor = Redactor.of(secrets=[secret], places=[])
    assert secret not in redactor.text(before + secret + after) or secret in "[redacted]: "


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.just(f"x {TOKEN}"),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.just("key"), inner),
    )
)
def test_a_document_is_redacted_to_its_leaves(value):
    redacted = REDACTOR.document(value)
    assert TOKEN not in json.dumps(redacted)
    assert type(redacted) is type(value) or isinstance(value, str)


@pytest.mark.parametrize(
    "line",
    [
        "Tell me what my diagnosis means",
        "my diagnosis: bad news",
        "",
        "    indented words of a story",
        "Patient: John Smith, HIV positive",
        "[INST] my diagnosis [/INST]",
        "companion: my diagnosis",
        "2026-01-01 my diagnosis",
        "1.2.3 I am ill",
        "http: my diagnosis",
        "time=after the operation",
        "time= level= my diagnosis",
        "domain: my diagnosis",
        "mainly: my diagnosis",
    ],
)
def test_a_log_line_of_no_known_program_is_left_out(line):
    assert REDACTOR.log_line(line) is None


@pytest.mark.parametrize(
    "line",
    [
        'srv  update: prompt = "my diagnosis"',
        "slot process: prompt: my diagnosis",
        'request: {"messages": [{"content": "my diagnosis"}]}',
        "srv: user: my diagnosis",
        "srv: got 'my diagnosis' to answer",
        "srv: input=my diagnosis",
        "main: content: my diagnosis",
    ],
)
def test_what_a_program_says_of_a_request_is_cut(line):
    kept = REDACTOR.log_line(line)
    assert kept is None or "diagnosis" not in kept


@pytest.mark.parametrize(
    "line",
    [
        "0.00.007.959 I srv          init: loading model",
        "srv  update_slots: all slots are idle",
        "srv    operator(): cleaning up before exit",
        "slot print_timing: id  0 | task 0 | 12.5 tokens per second",
        "que    start_loop: waiting",
        "cmn  common_init: fitting",
        "main: server is listening",
        "llama_model_loader: n_ctx = 512",
        "load_tensors: offloaded 2/2 layers",
        "print_info: file format = GGUF V3",
        "ggml_cuda_init: found 1 device",
        "time=2026-01-01T00:00:00Z level=INFO source=sched.go:1",
    ],
)
def test_what_a_program_says_of_itself_stays(line):
    assert REDACTOR.log_line(line) == line


@pytest.mark.parametrize(
    "line",
    [
        "companion: keychain_locked: Unlock it.",
        "2026-01-02T03:04:05Z companion: runtime_ended runtime_exited",
    ],
)
def test_the_companions_own_log_lines_stay(line):
    assert REDACTOR.log_line(line, "companion.log") == line
    assert REDACTOR.log_line("main: words", "companion.log") is None


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://h.example/m.json?token=x", "https://h.example/m.json"),
        ("https://h.example/m.json#x", "https://h.example/m.json"),
        ("https://a:b@h.example/m.json", "https://h.example/m.json"),
        ("file:///srv/manifest.json", "file:///srv/manifest.json"),
    ],
)
def test_an_address_is_shown_without_what_may_be_secret(url, shown):
    assert shown_url(url) == shown
