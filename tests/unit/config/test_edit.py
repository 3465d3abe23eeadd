import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from companion_core.config.edit import NewKey, add_keys, replace_text
from companion_core.errors import Reason, UsageError

pytestmark = pytest.mark.unit

OLD, NEW = "0" * 64, "1" * 64
NAME = NewKey(section="runtime", name="name", value="llamacpp", comment="Which plugin.")

# What a person may have written of [runtime] and beside it.
LAYOUTS = [
    "",
    "[runtime]",
    "[runtime]\n",
    "# mine\n\n[ runtime ] # of this machine\nthreads = 4  # cores\n\n[gateway]\nport = 8080\n",
    'runtime.threads = 4 # dotted\nmodel.id = "x"\n\n[gateway]\nport = 8080\n',
    "[runtime.options]\nflash_attention = true\n",
    "[gateway]\r\nport = 8080\r\n# after it\r\n[runtime]\r\nthreads = 4\r\n",
    'model.id = """\n[runtime]\n"""\n[runtime]\nthreads = 4\n',
    "[runtime]\nthreads = 4\n\n[keychain.options]\ncollection = '[runtime]'\n# the end",
]


@pytest.mark.parametrize("text", LAYOUTS)
def test_a_key_is_added_and_everything_that_was_written_stays_in_its_order(text):
    edited = add_keys(text, [NAME])
    assert tomllib.loads(edited) == {
        **tomllib.loads(text),
        "runtime": {**tomllib.loads(text).get("runtime", {}), "name": "llamacpp"},
    }
    rest = iter(edited.splitlines())
    assert all(line in rest for line in text.splitlines())  # consumes `rest`: the order is kept
    assert "# Which plugin." in edited
    assert ("\r\n" in edited) is ("\r\n" in text)


@given(
    value=st.one_of(st.text(), st.lists(st.text(), max_size=3)),
    text=st.sampled_from(LAYOUTS),
    section=st.sampled_from(["runtime", "gateway", "new"]),
)
def test_any_text_comes_back_as_it_was(value, text, section):
    edited = add_keys(text, [NewKey(section=section, name="of_mine", value=value)])
    assert tomllib.loads(edited)[section]["of_mine"] == value


def test_keys_of_one_section_come_in_their_order():
    keys = [NAME, NewKey(section="keychain", name="name", value="linux")]
    keys.append(NewKey(section="runtime", name="binary", value="embedded"))
    edited = add_keys("[runtime]\nthreads = 4\n", keys)
    assert edited == (
        '[runtime]\n# Which plugin.\nname = "llamacpp"\nbinary = "embedded"\nthreads = 4\n'
        '\n[keychain]\nname = "linux"\n'
    )


@pytest.mark.parametrize("text", ["runtime = { threads = 4 }\n", "runtime = 3\n"])
def test_what_cannot_be_added_to_is_refused_with_the_lines_to_write(text):
    with pytest.raises(UsageError) as refused:
        add_keys(text, [NAME])
    assert refused.value.reason is Reason.CONFIGURATION_INVALID
    assert '    [runtime]\n    # Which plugin.\n    name = "llamacpp"' in refused.value.detail


@pytest.mark.parametrize(
    "text",
    [
        f'[runtime]\n# was "{OLD}"\nbinary_sha256 = "{OLD}" # of 2025\nthreads = 4\n',
        f"runtime.binary_sha256='{OLD}'\n",
        f'runtime = {{ binary = "/x", "binary_sha256" = "{OLD}" }}\n',
        f'[models]\nkey_file = """\nbinary_sha256 = "{OLD}"\n"""\n'
        f'[runtime]\nbinary_sha256 = "{OLD}"\n',
    ],
)
def test_a_digest_is_replaced_and_nothing_else(text):
    edited = replace_text(text, "runtime", "binary_sha256", NEW)
    wanted = tomllib.loads(text)
    wanted["runtime"]["binary_sha256"] = NEW
    assert tomllib.loads(edited) == wanted
    quoted = edited.replace(f'"{NEW}"', f"'{NEW}'").replace(NEW, OLD)
    assert quoted.replace("'", '"') == text.replace("'", '"')


def test_a_digest_in_several_lines_is_refused_with_the_line_to_write():
    with pytest.raises(UsageError) as refused:
        replace_text(f'[runtime]\nbinary_sha256 = """{OLD}"""\n', "runtime", "binary_sha256", NEW)
    assert f'binary_sha256 = "{NEW}"' in refused.value.detail
