"""Rules for this file: a model's chat template in Jinja's language in, Ollama's own form out.

Pure. Ollama reads templates of Go's `text/template` alone. It knows some of Jinja's by heart, and
for every other uses one that drops system prompts, roles and tools without a word. A format is
recognised by the marks that a template writes; what is not recognised here is left to Ollama,
whose choice is looked at before the model is used.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

__all__ = ["BARE", "Template", "in_ollamas_form"]

# What Ollama takes where it does not know a template.
BARE: Final = "{{ .Prompt }}"
# Go's templates name fields with a leading dot; Jinja's have statements in {% %}.
_GO: Final = re.compile(r"\{\{-?[^}]*(?:\s|\()\.[A-Z]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """A template in Ollama's form, and where an answer in it ends."""

    text: str
    stop: tuple[str, ...] = ()


_CHATML: Final = Template(
    text=(
        "{{- range .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n{{ end }}"
        "<|im_start|>assistant\n"
    ),
    stop=("<|im_start|>", "<|im_end|>"),
)
# ChatML with tools as Hermes and Qwen write them.
_CHATML_TOOLS: Final = Template(
    text=(
        "{{- if or .System .Tools }}<|im_start|>system\n"
        "{{- if .System }}\n{{ .System }}{{ end }}"
        "{{- if .Tools }}\n\n# Tools\n\n"
        "You may call one or more functions to assist with the user query.\n\n"
        "You are provided with function signatures within <tools></tools> XML tags:\n<tools>"
        '{{- range .Tools }}\n{"type": "function", "function": {{ .Function }}}{{- end }}\n</tools>'
        "\n\nFor each function call, return a json object with function name and arguments within "
        "<tool_call></tool_call> XML tags:\n<tool_call>\n"
        '{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>'
        "{{- end }}<|im_end|>\n{{ end }}"
        '{{- range .Messages }}{{- if eq .Role "user" }}'
        "<|im_start|>user\n{{ .Content }}<|im_end|>\n"
        '{{ else if eq .Role "assistant" }}<|im_start|>assistant\n'
        "{{ if .Content }}{{ .Content }}{{ end }}"
        "{{- if .ToolCalls }}{{ range .ToolCalls }}<tool_call>\n"
        '{"name": "{{ .Function.Name }}", "arguments": {{ .Function.Arguments }}}\n</tool_call>\n'
        "{{ end }}{{- end }}<|im_end|>\n"
        '{{ else if eq .Role "tool" }}<|im_start|>user\n<tool_response>\n{{ .Content }}\n'
        "</tool_response><|im_end|>\n{{ end }}{{- end }}<|im_start|>assistant\n"
    ),
    stop=("<|im_start|>", "<|im_end|>"),
)
# The format of the demo's own model, which knows no system prompt.
_DEMO: Final = Template(
    text=(
        '{{- range .Messages }}{{ if eq .Role "user" }}<|user|>{{ .Content }}'
        '{{ else if eq .Role "assistant" }}<|assistant|>{{ .Content }}</s>{{ end }}{{ end }}'
        "<|assistant|>"
    ),
)
# The marks of a format, all of which its template writes; the first row that fits counts.
_FORMATS: Final[tuple[tuple[tuple[str, ...], Template], ...]] = (
    (("<|im_start|>", "<|im_end|>", "<tool_call>", "<tools>"), _CHATML_TOOLS),
    (("<|im_start|>", "<|im_end|>"), _CHATML),
    (("'<|user|>' + text", "'<|assistant|>' + text + eos_token"), _DEMO),
)


def in_ollamas_form(template: str) -> Template | None:
    """Return the template as Ollama reads it; None for one that is not recognised."""
    if "{%" not in template and _GO.search(template):
        return Template(text=template)
    for marks, known in _FORMATS:
        if all(mark in template for mark in marks):
            return known
    return None
