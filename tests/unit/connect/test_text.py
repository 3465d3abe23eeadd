"""A value changed where it stands: everything else of the text stays, to the byte."""

import json
import tomllib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from companion_core.connect.changes import MISSING, Entry, Unclear, find, name_of
from companion_core.connect.text import Form, edited, parsed

pytestmark = pytest.mark.unit

MODEL = Entry("name", "companion")
ADDED = {"name": "companion", "apiBase": "http://127.0.0.1:1/v1", "roles": ["chat", "edit"]}


JSONC = """\
// my editor
{
    "theme": "dark", // at night
    /* models */
    "models": {
        "mine": {"url": "x"}
    },
    "last": [1, 2,], // trailing
}
"""


def test_json_gets_a_key_and_keeps_comments_and_style():
    text = edited(Form.JSON, JSONC, [(("models", "companion"), {"url": "y"}), (("top",), 1)])
    assert text == JSONC.replace(
        '        "mine": {"url": "x"}\n',
        '        "mine": {"url": "x"},\n'
        '        "companion": {\n            "url": "y"\n        }\n',
    ).replace("// trailing\n", '// trailing\n    "top": 1,\n')
    back = edited(Form.JSON, text, [(("models", "companion"), MISSING), (("top",), MISSING)])
    assert back == JSONC


@pytest.mark.parametrize(
    ("before", "expected"),
    [
        ("", '{\n  "a": {\n    "b": 1\n  }\n}\n'),
        ("{}", '{\n  "a": {\n    "b": 1\n  }\n}'),
        ('{"x": 2}', '{"x": 2, "a": {\n  "b": 1\n}}'),
        ('{\n\t"x": 2 // two\n}\n', '{\n\t"x": 2, // two\n\t"a": {\n\t\t"b": 1\n\t}\n}\n'),
        ('{\n  "a": {"b": 7, "c": 3}\n}', '{\n  "a": {"b": 1, "c": 3}\n}'),
        ('{\r\n  "x": 2\r\n}\r\n', '{\r\n  "x": 2,\r\n  "a": {\r\n    "b": 1\r\n  }\r\n}\r\n'),
    ],
    ids=["nothing", "empty", "one-line", "tabs-and-comment", "replaced", "crlf"],
)
def test_json_of_every_shape_takes_a_value(before, expected):
    assert edited(Form.JSON, before, [(("a", "b"), 1)]) == expected


@pytest.mark.parametrize(
    "text",
    ["{", "[", '{"a" 1}', '{"a": 1,, }', '{"a": 01}', "{} {}", '{"a":1,"a":2}', "nul", "[" * 100,
     '{"a": 1 /* never closed', '{"a": "\n"}', '{"a": }', "[1 2]"],
)  # fmt: skip
def test_what_is_no_json_is_refused(text):
    with pytest.raises(Unclear):
        parsed(Form.JSON, text)


@settings(max_examples=50)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
        ),
        max_leaves=8,
    ),
    st.sampled_from([None, 1, 2, "\t"]),
)
def test_json_is_read_as_the_standard_library_reads_it(value, indent):
    assert parsed(Form.JSON, json.dumps(value, indent=indent)) == value


@settings(max_examples=30)
@given(st.text(alphabet='{}[]":,/*\\ \n1atrue-.', max_size=40))
def test_any_text_is_read_or_refused(text):
    for form in Form:
        try:
            parsed(form, text)
            edited(form, text, [(("a", "b"), 1)])
        except Unclear:
            pass


TOML = """\
# mine
model = "o4"  # the vendor's
approval = "never"

[tui]
theme = "dark"  # at night
"""


def test_toml_keeps_comments_and_order():
    changes = [
        (("model",), "tiny"),
        (("model_provider",), "companion"),
        (("model_providers", "companion"), {"name": "c", "auth": {"args": ["a", "b"]}}),
    ]
    text = edited(Form.TOML, TOML, changes)
    assert text.startswith('# mine\nmodel = "tiny"  # the vendor\'s\napproval = "never"\n')
    assert '[tui]\ntheme = "dark"  # at night\n' in text
    document = tomllib.loads(text)
    assert document["model_provider"] == "companion"
    assert document["model_providers"]["companion"]["auth"]["args"] == ["a", "b"]
    back = edited(
        Form.TOML,
        text,
        [(("model",), "o4"), (("model_provider",), MISSING), (("model_providers",), MISSING)],
    )
    assert tomllib.loads(back) == tomllib.loads(TOML)
    assert "# at night" in back


YAML = """\
# mine
name: my config
models:
  # the vendor's
  - name: gpt
    provider: openai

  # after
rules: [be kind]
"""


def test_yaml_gets_an_element_and_keeps_comments_and_style():
    text = edited(Form.YAML, YAML, [(("models", MODEL), ADDED)])
    assert text == YAML.replace(
        "    provider: openai\n",
        "    provider: openai\n"
        '  - name: companion\n    apiBase: "http://127.0.0.1:1/v1"\n    roles: ["chat", "edit"]\n',
    )
    moved = edited(Form.YAML, text, [(("models", MODEL), {**ADDED, "apiBase": "z"})])
    assert parsed(Form.YAML, moved)["models"][1]["apiBase"] == "z"
    assert moved.count("companion") == 1
    assert edited(Form.YAML, moved, [(("models", MODEL), MISSING)]) == YAML


def test_a_list_that_is_the_whole_file_gets_an_element():
    mine = "- model_id: mine  # kept\n  model_name: x\n"
    entry = Entry("model_id", "companion")
    text = edited(Form.YAML, mine, [((entry,), {"model_id": "companion", "can": True})])
    assert text == mine + "- model_id: companion\n  can: true\n"
    assert edited(Form.YAML, text, [((entry,), MISSING)]) == mine
    alone = edited(Form.YAML, "", [((entry,), {"model_id": "companion"})])
    assert alone == "- model_id: companion\n"
    assert parsed(Form.YAML, edited(Form.YAML, alone, [((entry,), MISSING)])) == []
    assert edited(Form.YAML, "[]\n", [((entry,), {"model_id": "companion"})]) == alone


def test_yaml_gets_a_key_another_value_and_loses_it():
    text = edited(Form.YAML, "dark: true # at night\n", [(("model",), "openai/m"), (("key",), "k")])
    assert text == 'dark: true # at night\nmodel: "openai/m"\nkey: k\n'
    assert edited(Form.YAML, text, [(("model",), "n")]).splitlines()[1] == "model: n"
    assert edited(Form.YAML, text, [(("model",), MISSING), (("key",), MISSING)]) == text[:22]


def test_a_word_that_yaml_reads_otherwise_is_quoted():
    for word in ("true", "null", "1e3", "- x", "a: b", "~", ""):
        assert parsed(Form.YAML, edited(Form.YAML, "", [(("a",), word)])) == {"a": word}


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("models: {a: 1}\n", ("models", MODEL)),
        ("models: [{name: x}]\n", ("models", MODEL)),
        ("- a\n", ("models", MODEL)),
        ("a: 1\n---\nb: 2\n", ("a",)),
        ("a: &x 1\nb: *x\n", ("a",)),
        ("{a: 1}\n", ("b",)),
        ("a: [\n", ("a",)),
    ],
    ids=["table", "flow", "list", "two", "anchor", "flow-root", "broken"],
)
def test_yaml_that_cannot_be_changed_in_place_is_refused(text, path):
    with pytest.raises(Unclear):
        edited(Form.YAML, text, [(path, ADDED)])


def test_a_path_is_found_and_has_a_name():
    document = {"models": [{"name": "companion", "x": 1}]}
    assert find(document, ("models", MODEL, "x")) == 1
    assert find(document, ("models", Entry("name", "y"), "x")) is MISSING
    assert name_of(("models", MODEL, "x")) == "models[companion].x"
    for wrong in (("models", "x"), ("models", MODEL, "x", "y")):
        with pytest.raises(Unclear):
            find(document, wrong)
