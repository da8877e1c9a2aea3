"""A row's tests of code: asserts, or inputs with the outputs they must give. And the code of an answer. Pure.

A row's `tests` is one text of Python, a list of such texts, or pairs of standard input and expected output, as
[{"input": "1 2", "output": "3"}] or {"inputs": [...], "outputs": [...]}; any of them may be JSON in a text.
"""

from __future__ import annotations

import ast
import builtins
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

REACHED = "_raylign_reached"
"""What a test calls at each assert: one that reaches none has tested nothing."""
_PYTHON = {"python", "py", "python3"}
_DEFINES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


class TestsError(ValueError):
    """A row whose tests cannot be used; the message says why."""

    __test__ = False  # no test of ours


@dataclass(frozen=True, slots=True)
class AssertTests:
    """Tests that call what the answer defines."""

    tests: tuple[tuple[str, bool], ...]  # a statement each, and whether it is a test: else it prepares for those
    names: tuple[str, ...]  # what they use and do not define: the answer's

    @property
    def count(self) -> int:
        """How many are tests."""
        return sum(1 for _, counts in self.tests if counts)


@dataclass(frozen=True, slots=True)
class OutputTests:
    """Runs of the answer as a program: standard input, and what it must write."""

    pairs: tuple[tuple[str, str], ...]


CodeTests = AssertTests | OutputTests


def read_tests(value: object) -> CodeTests:
    """Raises TestsError for what is none of the forms above, and for tests that no answer could fail or pass."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        with suppress(ValueError):  # a text of Python may begin with a bracket too
            value = json.loads(value)
    if isinstance(value, str):
        return _asserts([value])
    if isinstance(value, Mapping):
        inputs, outputs = value.get("inputs"), value.get("outputs")
        if not isinstance(inputs, Sequence) or not isinstance(outputs, Sequence) or len(inputs) != len(outputs):
            raise TestsError("an object of tests has 'inputs' and 'outputs', two lists of one length")
        return _pairs(list(zip(inputs, outputs, strict=True)))
    if isinstance(value, Sequence) and value and all(isinstance(one, str) for one in value):
        return _asserts(value)
    if isinstance(value, Sequence) and value and all(isinstance(one, Mapping) for one in value):
        return _pairs([(one.get("input", ""), one.get("output")) for one in value])
    raise TestsError("it is neither Python with asserts, nor a list of such, nor pairs of input and output")


def _pairs(found: Sequence[tuple[object, object]]) -> OutputTests:
    if not found:
        raise TestsError("there is no pair of input and output")
    for given, wanted in found:
        if not isinstance(given, str) or not isinstance(wanted, str):
            raise TestsError("an input and an output are texts")
        if not wanted.strip():
            raise TestsError("an expected output is empty, so a program that does nothing would pass")
    return OutputTests(tuple((str(given), str(wanted)) for given, wanted in found))


def _asserts(texts: Sequence[str]) -> AssertTests:
    try:
        tree = [statement for text in texts for statement in ast.parse(text).body]
        names = _names_of_others(tree)
        checking = {node.name for node in tree if isinstance(node, _DEFINES) and _holds_assert(node)}
        tests = tuple((_counted(statement), _is_test(statement, checking)) for statement in tree)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise TestsError(f"it is no Python: {error}") from error
    if not any(counts for _, counts in tests):
        raise TestsError("it has no assert that is reached")
    if not names:
        raise TestsError("its tests use nothing that the answer could define")
    return AssertTests(tests, names)


def _is_test(statement: ast.stmt, checking: set[str]) -> bool:
    """It asserts, or uses a function of the tests that does."""
    if isinstance(statement, _DEFINES):
        return False
    used = {node.id for node in ast.walk(statement) if isinstance(node, ast.Name)}
    return _holds_assert(statement) or bool(used & checking)


def _holds_assert(node: ast.AST) -> bool:
    return any(isinstance(below, ast.Assert) for below in ast.walk(node))


def _names_of_others(tree: Sequence[ast.stmt]) -> tuple[str, ...]:
    """Names that are read and neither Python's own nor set anywhere in the tests, in alphabetical order."""
    read: set[str] = set()
    own = set(dir(builtins))
    for node in (node for statement in tree for node in ast.walk(statement)):
        if isinstance(node, ast.Name):
            (read if isinstance(node.ctx, ast.Load) else own).add(node.id)
        elif isinstance(node, _DEFINES):
            own.add(node.name)
        elif isinstance(node, ast.arg):
            own.add(node.arg)
        elif isinstance(node, ast.alias):
            own.add((node.asname or node.name).partition(".")[0])
        elif isinstance(node, ast.ExceptHandler) and node.name:
            own.add(node.name)
    return tuple(sorted(read - own))


def _counted(statement: ast.stmt) -> str:
    """The statement, with a word in front of each assert and at the start of each handler: an exception may be what a
    test wants."""
    return ast.unparse(ast.fix_missing_locations(_Counted().visit(ast.Module([statement], []))))


class _Counted(ast.NodeTransformer):
    def visit_Assert(self, node: ast.Assert) -> list[ast.stmt]:
        return [_reach(), node]

    def visit_ExceptHandler(self, node: ast.ExceptHandler) -> ast.AST:
        self.generic_visit(node)
        node.body.insert(0, _reach())
        return node


def _reach() -> ast.Expr:
    return ast.Expr(ast.Call(ast.Name(REACHED, ast.Load()), [], []))


def same_output(written: bytes, wanted: str) -> bool:
    """Equal but for white space at the ends of lines and of the whole."""
    return _lines(written.decode("utf-8", errors="replace")) == _lines(wanted)


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().split("\n")]


def code_of(answer: str) -> str | None:
    """The last block of Python between ``` marks, else the last without a language; None without either.

    A block that the answer does not close goes to its end.
    """
    blocks: list[tuple[str, list[str]]] = []  # language, lines
    inside = False
    for line in answer.split("\n"):
        if line.lstrip().startswith("```"):
            inside = not inside
            if inside:
                blocks.append((line.strip().strip("`").strip().lower(), []))
        elif inside:
            blocks[-1][1].append(line)
    for languages in (_PYTHON, {""}):
        of_these = [lines for language, lines in blocks if language in languages]
        if of_these:
            return "\n".join(of_these[-1])
    return None
