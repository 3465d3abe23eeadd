import pytest

from companion_core.cli.exec_command import client_environment

pytestmark = pytest.mark.unit

SESSION = ("http://127.0.0.1:4/v1", "secret-token")


def test_the_session_and_nothing_else_is_added():
    before = {"PATH": "/usr/bin", "HOME": "/home/a"}
    after = client_environment(before, *SESSION)
    assert after["OPENAI_BASE_URL"] == SESSION[0]
    assert after["OPENAI_API_KEY"] == SESSION[1]
    added = set(after) - set(before)
    assert added == {"OPENAI_BASE_URL", "OPENAI_API_KEY", "NO_PROXY", "no_proxy"}
    assert {name: after[name] for name in before} == before


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("", "127.0.0.1,localhost,::1"),
        ("example.org", "example.org,127.0.0.1,localhost,::1"),
        ("localhost,example.org", "localhost,example.org,127.0.0.1,::1"),
    ],
)
def test_loopback_is_kept_from_any_proxy_and_what_stood_there_stays(given, expected):
    after = client_environment({"NO_PROXY": given, "no_proxy": given}, *SESSION)
    assert after["NO_PROXY"] == after["no_proxy"] == expected


def test_a_key_that_was_there_is_replaced():
    assert (
        client_environment({"OPENAI_API_KEY": "sk-cloud"}, *SESSION)["OPENAI_API_KEY"]
        == (SESSION[1])
    )


def test_one_of_the_two_names_does_not_hide_what_the_other_says():
    after = client_environment({"NO_PROXY": "internal.example"}, *SESSION)
    assert after["no_proxy"] == after["NO_PROXY"] == "internal.example,127.0.0.1,localhost,::1"


def test_a_star_keeps_its_meaning():
    after = client_environment({"no_proxy": "*"}, *SESSION)
    assert after["no_proxy"] == after["NO_PROXY"] == "*"
