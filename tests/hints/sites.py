"""Find every hint in the source: what a message says that one can do about it.

A hint is the argument `hint` of a call (by keyword, by position, or as the default of a function in the same
module), or the value of `error.hint = …`, or a note or problem with advice in it, which ADVICE tells. Its
words may stand in a table, or in a function. What is only known when the program runs is written as "…".
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import NamedTuple

import monosoup_cli

PACKAGE = Path(monosoup_cli.__file__).parent
UNKNOWN = "…"
ADVICE = re.compile(
    r"\b(rerun|raise|add|try)\b.* --[a-z]|\bwould match\b"
    r"|--[a-z-]+( [a-z…]+)? (leaves|keeps|uses|writes|carries|chooses)\b"
    r"|\bneeds? (--[a-z]|a (base|folder)\b|\{\})|\bgive the\b"
    r"|[;:,] (remove|use|pass|save|run|set|choose|rename|convert|merge) "
)
Pair = tuple[ast.expr | None, ast.expr]


class Site(NamedTuple):
    """A hint, and the problem beside it; "" where the advice is the whole message."""

    file: str
    problem: str
    hint: str

    @property
    def words(self) -> str:
        return f"{self.problem}; {self.hint}" if self.problem else self.hint

    def find(self, printed: str) -> tuple[str, list[str]] | None:
        """The hint in a text, and what stands where its words are only known when the program runs."""
        parts = [re.escape(part) for part in re.split(f"{UNKNOWN}+", self.hint)]
        last = "(.+)" if parts[-1] == "" and len(parts) > 1 else ""
        found = re.search("(.*?)".join(parts[:-1] if last else parts) + last, printed)
        return found and (found[0], list(found.groups()))


def all_sites() -> list[Site]:
    modules = {path.relative_to(PACKAGE).as_posix(): path for path in sorted(PACKAGE.rglob("*.py"))}
    package = {name: Module(name, ast.parse(path.read_text())) for name, path in modules.items()}
    return list(dict.fromkeys(site for module in package.values() for site in module.sites(package)))


class Module:
    """A module's tree, and the texts that its expressions stand for."""

    def __init__(self, name: str, tree: ast.Module) -> None:
        self.name, self.tree = name, tree
        self.owners = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
        self.package: dict[str, Module] = {}
        self.assignments: dict[ast.AST, list[ast.Assign | ast.AugAssign | ast.AnnAssign | ast.For]] = {}
        self.definitions: dict[str, list[ast.ClassDef | ast.FunctionDef]] = {}
        self.imports: dict[str, str] = {}
        for node in ast.walk(tree):
            if isinstance(node, ast.Assign | ast.AugAssign | ast.AnnAssign | ast.For):
                self.assignments.setdefault(self.scope(node), []).append(node)
            elif isinstance(node, ast.ClassDef | ast.FunctionDef):
                self.definitions.setdefault(node.name, []).append(node)
            elif isinstance(node, ast.ImportFrom):
                source = f"{str(node.module).removeprefix('monosoup_cli.').replace('.', '/')}.py"
                self.imports |= {each.name: source for each in node.names}

    def sites(self, package: dict[str, Module]) -> Iterator[Site]:
        self.package = package
        given: set[str] = set()
        for node in ast.walk(self.tree):
            pairs: list[Pair] = []
            if isinstance(node, ast.Call):
                pairs = self.pairs(node)
            elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "error.hint":
                pairs = [(None, node.value)]
            for problem, hint in pairs:
                texts = self.texts(hint) or self.imported(hint)
                texts = texts or ([] if self.is_passed_on(hint) else [UNKNOWN])
                given.update(texts)
                yield from (Site(self.name, self.problem(problem), text) for text in texts)
        texts = {text for node in self.messages() for text in self.texts(node) if ADVICE.search(text)}
        whole = [text for text in texts if not any(text in other for other in (texts - {text}) | given)]
        yield from (Site(self.name, "", text) for text in sorted(whole))

    def pairs(self, call: ast.Call) -> list[Pair]:
        """The expressions of problem and hint in a call that takes a hint; several where they go together."""
        if call.args and isinstance(call.args[0], ast.Starred):
            returned = self.returned(call.args[0].value)
            return [(each.elts[0], each.elts[1]) for each in returned if isinstance(each, ast.Tuple)]
        named = {word.arg: word.value for word in call.keywords}
        hint = named["hint"] if "hint" in named else self.parameter(call)
        problem = call.args[0] if call.args else None
        if hint is None:
            return []
        if isinstance(problem, ast.Name) and isinstance(hint, ast.Name):
            values = [
                value
                for target, value in self.assigned(call)
                if ast.unparse(target) == f"({problem.id}, {hint.id})"
            ]
            if values:
                return [(row.elts[0], row.elts[1]) for value in values for row in self.rows(value)]
        return [(problem or call, hint)]

    def problem(self, node: ast.AST | None) -> str:
        """The fixed words of a problem."""
        match node:
            case None:
                return ""
            case ast.Constant(value=str(text)):
                return text
            case ast.JoinedStr(values=parts):
                return "".join(map(self.problem, parts))
            case ast.BinOp(left=left, right=right):
                return self.problem(left) + self.problem(right)
            case ast.FormattedValue(value=ast.Name() as name) if not self.is_local(name):
                return self.problem(name)
            case ast.Name() if not self.is_local(node):
                return (self.texts(node) or [UNKNOWN])[0]
        return UNKNOWN

    def is_local(self, name: ast.Name) -> bool:
        around = self.scope(name)
        return around is not self.tree and any(
            isinstance(node, ast.Name) and node.id == name.id and isinstance(node.ctx, ast.Store)
            for node in ast.walk(around)
        )

    def parameter(self, call: ast.Call) -> ast.expr | None:
        """What a call of this module's own function or class gives as `hint` by position, or by default."""
        for node in self.definitions.get(call.func.id, ()) if isinstance(call.func, ast.Name) else ():
            if isinstance(node, ast.ClassDef):
                fields = [each for each in node.body if isinstance(each, ast.AnnAssign)]
                names, defaults = (
                    [ast.unparse(each.target) for each in fields],
                    [each.value for each in fields],
                )
            else:
                names = [each.arg for each in node.args.args]
                defaults = [None] * (len(names) - len(node.args.defaults)) + node.args.defaults
            if "hint" in names and self.scope(node) in self.scopes(call):
                place = names.index("hint")
                return call.args[place] if place < len(call.args) else defaults[place]
        return None

    def texts(self, node: ast.AST | None) -> list[str]:
        """What an expression may stand for; nothing where only its origin, found by itself, tells."""
        match node:
            case ast.Constant(value=str(text)):
                return [text]
            case ast.JoinedStr(values=parts):
                return ["".join(each) for each in product(*map(self.part, parts))]
            case ast.IfExp(body=one, orelse=other):
                return self.texts(one) + self.texts(other)
            case ast.BoolOp(values=values):
                return [text for value in values for text in self.texts(value)]
            case ast.BinOp(left=left, right=right):
                return ["".join(each) for each in product(self.texts(left), self.texts(right))]
            case ast.Name():
                return self.meanings(node)
            case ast.Subscript(value=table) | ast.Call(func=ast.Attribute(value=table, attr="get")):
                return self.values(table)
            case ast.Call(func=ast.Attribute(value=text, attr="format")):
                return [re.sub(r"\{\w*\}", UNKNOWN, each) for each in self.texts(text)]
            case ast.Call():
                return [text for value in self.returned(node) for text in self.texts(value)]
        return []

    def is_passed_on(self, node: ast.AST) -> bool:
        """Whether an expression is no hint, or one that has been found where it comes from."""
        names = [each for each in ast.walk(node) if isinstance(each, ast.Name | ast.Attribute)]
        if isinstance(node, ast.Constant) or any(
            "hint" in (ast.unparse(each).split(".")[-1]) for each in names
        ):
            return True
        return any(
            ast.unparse(target) == ast.unparse(name) and self.is_passed_on(value)
            for name in names
            for target, value in self.assigned(name)
        )

    def values(self, table: ast.expr) -> list[str]:
        """The texts in a dict."""
        dicts = [value for target, value in self.assigned(table) if ast.unparse(target) == ast.unparse(table)]
        nodes = [value for each in dicts if isinstance(each, ast.Dict) for value in each.values]
        return [text for value in nodes for text in self.texts(value)]

    def part(self, node: ast.expr) -> list[str]:
        value = node.value if isinstance(node, ast.FormattedValue) else node
        return self.texts(value) if isinstance(value, ast.Constant) else self.meanings(value) or [UNKNOWN]

    def meanings(self, name: ast.AST) -> list[str]:
        """The texts that are assigned to a name: in its function, its module, or the one it comes from."""
        if not isinstance(name, ast.Name):
            return []
        found: list[str] = []
        for target, value in self.assigned(name):
            is_row = isinstance(target, ast.Tuple)
            targets = target.elts if is_row else [target]
            rows = [row.elts for row in self.rows(value)] if is_row else [[value]]
            for each, text in (pair for row in rows for pair in zip(targets, row, strict=False)):
                if ast.unparse(each) == name.id:
                    is_added = isinstance(self.owners[target], ast.AugAssign)
                    starts = found[:1] if is_added else [""]
                    found += [start + more for start in starts for more in self.texts(text)]
        source = None if found else self.package.get(self.imports.get(name.id, ""))
        return found if source is None else source.meanings(name)

    def rows(self, value: ast.expr) -> list[ast.Tuple]:
        """The rows that several names stand for at once: of a table, or one alone."""
        match value:
            case ast.Tuple(elts=[ast.Tuple(), *_]):
                found: list[ast.expr] = value.elts
            case ast.Dict():
                found = value.values
            case ast.Name():
                tables = [table for target, table in self.assigned(value) if ast.unparse(target) == value.id]
                found = [row for table in tables for row in self.rows(table)]
            case ast.Subscript(value=table) | ast.Call(func=ast.Attribute(value=table, attr="get"), args=[_]):
                found = list(self.rows(table))
            case ast.Call(func=ast.Attribute(value=table, attr="get"), args=[_, default]):
                found = [*self.rows(table), default]
            case ast.Call(func=ast.Name(id="next"), args=[ast.GeneratorExp(elt=chosen), default]):
                found = [*self.rows(chosen), default]
            case _:
                found = [value]
        return [row for row in found if isinstance(row, ast.Tuple)]

    def assigned(self, node: ast.AST) -> Iterator[tuple[ast.expr, ast.expr]]:
        """The assignments above a place, and those of the module: target and value, or table of values."""
        line = getattr(node, "lineno", 0)
        for scope in self.scopes(node):
            for each in self.assignments.get(scope, ()):
                target = each.targets[0] if isinstance(each, ast.Assign) else each.target
                value = each.iter if isinstance(each, ast.For) else each.value
                is_of_one = isinstance(each, ast.For) and not isinstance(target, ast.Tuple)
                if value is not None and not is_of_one and (scope is self.tree or each.lineno < line):
                    yield target, value

    def returned(self, call: ast.expr) -> list[ast.expr]:
        """What this module's own function returns, where that is what is called."""
        if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name)):
            return []
        functions = [
            each for each in self.tree.body if isinstance(each, ast.FunctionDef) and each.name == call.func.id
        ]
        nodes = [node for function in functions for node in ast.walk(function)]
        return [node.value for node in nodes if isinstance(node, ast.Return) and node.value is not None]

    def imported(self, call: ast.expr) -> list[str]:
        """What another module's function returns, where that is what is called."""
        if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name)):
            return []
        source = self.package.get(self.imports.get(call.func.id, ""))
        return [text for value in source.returned(call) for text in source.texts(value)] if source else []

    def scope(self, node: ast.AST) -> ast.AST:
        """The function around a node, or the module."""
        while node is not self.tree:
            node = self.owners.get(node, self.tree)
            if isinstance(node, ast.FunctionDef):
                break
        return node

    def scopes(self, node: ast.AST) -> list[ast.AST]:
        found = [self.scope(node)]
        while found[-1] is not self.tree:
            found.append(self.scope(found[-1]))
        return found

    def messages(self) -> Iterator[ast.AST]:
        """All texts, except docstrings, what a text is a part of, and what --help says."""
        left_out: set[ast.AST] = set()
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Expr):
                left_out.add(node.value)
            elif isinstance(node, ast.JoinedStr):
                left_out |= set(ast.walk(node)) - {node}
            elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("Option", "re.compile"):
                left_out |= set(ast.walk(node))
            if node not in left_out and isinstance(node, ast.Constant | ast.JoinedStr):
                yield node


if __name__ == "__main__":
    for site in all_sites():
        print(f"{site.file}: {site.words}")
