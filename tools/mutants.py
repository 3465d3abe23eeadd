"""Rules for this file: the faults in tables, grammars and reasons that mutmut does not make.

mutmut changes the bodies of plain functions. This file changes the bodies of modules and classes
(tables, limits, patterns, defaults) and of decorated functions, and in every function the reasons
and the guards. Each mutant has one change, and its name is place and text, which survive edits.
"""

from __future__ import annotations

import ast
import copy
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

__all__ = ["Mutant", "mutants_of", "pattern_names"]


@dataclass(frozen=True, slots=True)
class Mutant:
    """One faulty version of a module.

    Attributes:
        name: unique in the module.
        old: the node that is replaced.
        new: the node in its place; None removes it.
    """

    name: str
    old: ast.AST
    new: ast.AST | None

    def apply(self, tree: ast.Module) -> None:
        """Change `tree`, of which `old` is a part, into the faulty version."""
        for parent in ast.walk(tree):
            for field, value in ast.iter_fields(parent):
                if value is self.old:
                    setattr(parent, field, self.new)
                elif isinstance(value, list):
                    for index, item in enumerate(value):
                        if item is self.old:
                            value[index : index + 1] = [] if self.new is None else [self.new]
        ast.fix_missing_locations(tree)


# A change: the node, a text that says what is changed, and the node that takes its place.
_Change = tuple[ast.AST, str, ast.AST | None]

_ENUMS = frozenset({"Reason", "State", "Event", "Lane", "RefreshDecision"})
_UNTOUCHED = frozenset({"__all__", "__slots__", "_P", "_D"})
_TRANSPARENT = frozenset(
    {"classmethod", "staticmethod"}
)  # mutmut changes functions under these only
# mutmut never changes the first; the second has run before mutmut switches a fault on.
_NEVER_BY_MUTMUT = frozenset({"__new__", "__init_subclass__"})


def pattern_names(trees: Iterable[ast.Module]) -> frozenset[str]:
    """Return the names of texts that are interpolated into a pattern, in any module."""
    return frozenset(
        part.value.id
        for tree in trees
        for call in ast.walk(tree)
        if _pattern_of(call) is not None
        for part in ast.walk(call)
        if isinstance(part, ast.FormattedValue) and isinstance(part.value, ast.Name)
    )


def mutants_of(tree: ast.Module, patterns: frozenset[str]) -> list[Mutant]:
    """Return every faulty version of `tree`; `patterns` is the result of `pattern_names`."""
    seen: Counter[str] = Counter()
    found = []
    members = _members(tree)
    for place, node, plain in _places(tree, ""):
        changes = list(_of_anything(node, members))
        if not plain:
            changes += _of_data(node, place, patterns)
        for old, what, new in changes:
            title = f"{place}: {what}"
            seen[title] += 1
            nth = f" #{seen[title]}" if seen[title] > 1 else ""
            found.append(Mutant(title + nth, old, new))
    return found


def _places(body: ast.AST, prefix: str) -> Iterator[tuple[str, ast.AST, bool]]:
    """Yield each part of a module: its name, its tree, and whether mutmut changes it."""
    for node in ast.iter_child_nodes(body):
        if isinstance(node, ast.ClassDef):
            for decorator in node.decorator_list:
                yield prefix + node.name, decorator, False
            inner = copy.copy(node)
            inner.decorator_list, inner.bases, inner.keywords = [], [], []
            yield from _places(inner, f"{prefix}{node.name}.")
        elif isinstance(node, ast.FunctionDef):
            name = prefix + node.name
            names = {d.id for d in node.decorator_list if isinstance(d, ast.Name)}
            plain = names <= _TRANSPARENT and node.name not in _NEVER_BY_MUTMUT
            for statement in node.body:
                yield name, statement, plain
        elif isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            name = ast.unparse(target)
            if name not in _UNTOUCHED:
                yield prefix + name, node, False


# --- faults in any code ---------------------------------------------------------------------


def _members(tree: ast.Module) -> dict[str, list[str]]:
    used: dict[str, set[str]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            used.setdefault(node.value.id, set()).add(node.attr)
    return {name: sorted(used[name]) for name in used if name in _ENUMS}


def _of_anything(node: ast.AST, members: dict[str, list[str]]) -> Iterator[_Change]:
    for part in ast.walk(node):
        if isinstance(part, ast.Attribute) and isinstance(part.value, ast.Name):
            others = members.get(part.value.id, [])
            if part.attr in others and len(others) > 1:
                other = others[(others.index(part.attr) + 1) % len(others)]
                changed = ast.Attribute(part.value, other, part.ctx)
                yield part, f"{ast.unparse(part)} -> {other}", changed
        elif (
            isinstance(part, ast.If)
            and not part.orelse
            and isinstance(part.body[-1], ast.Return | ast.Raise | ast.Continue)
        ):
            yield part, f"without `if {_short(part.test)}`", ast.Pass()


def _short(node: ast.AST) -> str:
    text = " ".join(ast.unparse(node).split())
    return text if len(text) <= 60 else text[:57] + "..."  # noqa: PLR2004 - it fits a line of the report


# --- faults in data -------------------------------------------------------------------------


def _of_data(node: ast.AST, place: str, patterns: frozenset[str]) -> Iterator[_Change]:
    skipped: set[int] = set()
    for part in ast.walk(node):
        if id(part) in skipped:
            continue
        if (grammar := _pattern_of(part)) is not None:
            for text in ast.walk(grammar):
                skipped.add(id(text))
                if isinstance(text, ast.Constant) and isinstance(text.value, str):
                    yield from _of_pattern(text)
        elif isinstance(part, ast.AnnAssign):
            skipped.update(id(inner) for inner in ast.walk(part.annotation))
        elif isinstance(part, ast.Expr) and isinstance(part.value, ast.Constant):
            skipped.add(id(part.value))  # a docstring
        elif isinstance(part, ast.Raise):
            skipped.update(id(inner) for inner in ast.walk(part))
        elif isinstance(part, ast.Constant):
            if place in patterns and isinstance(part.value, str):
                yield from _of_pattern(part)
            else:
                yield from _of_constant(part)
        elif isinstance(part, ast.keyword) and isinstance(part.value, ast.Constant):
            skipped.add(id(part.value))
            for old, what, new in _of_constant(part.value):
                yield old, f"{part.arg}={what}", new
        elif isinstance(part, ast.Dict):
            skipped.update(id(key) for key in part.keys)
            yield from _without_pairs(part)
        elif isinstance(part, ast.DictComp):
            skipped.add(id(part.key))
        elif isinstance(part, ast.Tuple | ast.List | ast.Set) and _is_table(part):
            for element in part.elts:
                yield element, f"without {_short(element)}", None
                if isinstance(element, ast.Constant) and isinstance(element.value, str):
                    skipped.add(id(element))  # a changed text tests no more than a missing one
        elif isinstance(part, ast.comprehension):
            for condition in part.ifs:
                yield condition, f"without `if {_short(condition)}`", None
        elif isinstance(part, ast.Return) and part.value is not None:
            yield part.value, f"{_short(part.value)} -> None", ast.Constant(None)
        elif isinstance(part, ast.IfExp):
            yield part, f"{_short(part)} -> {_short(part.body)}", part.body
            yield part, f"{_short(part)} -> {_short(part.orelse)}", part.orelse
        elif isinstance(part, ast.Compare) and len(part.ops) == 1:
            yield from _of_comparison(part)


def _is_table(node: ast.Tuple | ast.List | ast.Set) -> bool:
    stored = not isinstance(node, ast.Set) and isinstance(node.ctx, ast.Store)
    return len(node.elts) > 1 and not stored


def _without_pairs(table: ast.Dict) -> Iterator[_Change]:
    for index, key in enumerate(table.keys):
        keys = table.keys[:index] + table.keys[index + 1 :]
        values = table.values[:index] + table.values[index + 1 :]
        name = "**" if key is None else _short(key)
        yield table, f"without {name}", ast.Dict(keys, values)


def _of_constant(constant: ast.Constant) -> Iterator[_Change]:
    value = constant.value
    others: tuple[float | str | bytes, ...] = ()
    if isinstance(value, bool):
        others = (not value,)
    elif isinstance(value, int | float):
        others = (value + 1, value - 1)
    elif isinstance(value, str):
        others = (value + "~",)
    elif isinstance(value, bytes):
        others = (value + b"~",)
    for other in others:
        yield constant, f"{value!r} -> {other!r}", ast.Constant(other)


def _of_comparison(node: ast.Compare) -> Iterator[_Change]:
    opposites: dict[type[ast.cmpop], ast.cmpop] = {
        ast.Eq: ast.NotEq(),
        ast.NotEq: ast.Eq(),
        ast.In: ast.NotIn(),
        ast.NotIn: ast.In(),
    }
    opposite = opposites.get(type(node.ops[0]))
    if opposite is not None:
        changed = ast.Compare(node.left, [opposite], node.comparators)
        yield node, f"{_short(node)} -> {_short(changed)}", changed


# --- faults in a pattern --------------------------------------------------------------------


def _pattern_of(node: ast.AST) -> ast.expr | None:
    """Return the pattern of a call such as `re.compile(...)`; None for any other node."""
    if (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id == "re"
        and node.args
    ):
        return node.args[0]
    return None


_TOKEN = re.compile(
    r"(?P<escape>\\.)"
    r"|(?P<class>\[\^?\]?(?:\\.|[^\]\\])*\])"
    r"|(?P<open>\((?:\?(?:P<\w+>|[imsx]*:|[=!]|<[=!]))?)"
    r"|(?P<close>\))"
    r"|(?P<count>\{\d+(?:,\d*)?\})"
    r"|(?P<often>[*+?])"
    r"|(?P<or>\|)"
    r"|(?P<text>.)",
    re.DOTALL,
)
_SPECIAL = frozenset(".^$*+?()[{|")  # each means something else without its backslash
_MEMBER = re.compile(r"(?:\\x[0-9a-f]{2}|\\.|.)(?:-(?:\\x[0-9a-f]{2}|\\.|[^\]]))?", re.DOTALL)


def _of_pattern(constant: ast.Constant) -> Iterator[_Change]:
    pattern = constant.value
    assert isinstance(pattern, str)  # noqa: S101 - the caller checked its type
    for start, end, other in _edits(pattern):
        changed = pattern[:start] + other + pattern[end:]
        around = pattern[max(0, start - 12) : start]
        yield constant, f"{around}[{pattern[start:end]} -> {other}]", ast.Constant(changed)


def _edits(pattern: str) -> Iterator[tuple[int, int, str]]:
    for token in _TOKEN.finditer(pattern):
        start, end = token.span()
        text = token[0]
        match token.lastgroup:
            case "escape" if text[1] in _SPECIAL:
                yield start, start + 1, ""
            case "class":
                yield from ((start + a, start + b, other) for a, b, other in _class_edits(text))
            case "count":
                for number in re.finditer(r"\d+", text):
                    for other in (int(number[0]) + 1, int(number[0]) - 1):
                        if other >= 0:
                            yield start + number.start(), start + number.end(), str(other)
            case "often":
                yield start, end, {"*": "+", "+": "*", "?": ""}[text]
    yield from _branch_edits(pattern)


def _class_edits(text: str) -> Iterator[tuple[int, int, str]]:
    negated = text.startswith("[^")
    if negated:
        yield 1, 2, ""
    members = list(_MEMBER.finditer(text, 2 if negated else 1, len(text) - 1))
    if len(members) > 1:
        yield from ((*member.span(), "") for member in members)


def _branch_edits(pattern: str) -> Iterator[tuple[int, int, str]]:
    """Yield the removal of each alternative of a group that has several."""
    groups: list[list[int]] = [[0]]
    for token in _TOKEN.finditer(pattern):
        if token.lastgroup == "open":
            groups.append([token.end()])
        elif token.lastgroup == "or":
            groups[-1].append(token.end())
        elif token.lastgroup == "close" and len(groups) > 1:
            yield from _branches(groups.pop(), token.start())
    yield from _branches(groups[0], len(pattern))


def _branches(starts: list[int], end: int) -> Iterator[tuple[int, int, str]]:
    if len(starts) > 1:
        for index, start in enumerate(starts):
            last = index + 1 == len(starts)
            yield (start - 1, end, "") if last else (start, starts[index + 1], "")
