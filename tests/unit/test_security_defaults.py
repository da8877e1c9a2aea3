"""What no file of the product may do, whoever writes it: read code from data, run a shell, trust a model's own code."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator

import pytest

from tests.unit.test_project import name_of, parse, sources

UNPICKLERS = frozenset({"pickle", "cloudpickle", "dill", "marshal", "shelve", "joblib"})
UNSAFE_CALLS = frozenset({"eval", "exec", "os.system", "os.popen", "yaml.load", "yaml.unsafe_load", "compile"})
NEVER_SET = frozenset(
    {
        "VLLM_ALLOW_INSECURE_SERIALIZATION",
        "VLLM_SERVER_DEV_MODE",
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING",
        "TRUST_REMOTE_CODE",
    }
)
EXEMPT = {
    "cluster/own_code.py": "sends a user's own algorithm to the ranks of the same authenticated cluster",
    **dict.fromkeys(
        (f"reward/sandbox/inside/{name}.py" for name in ("answer", "program", "tests", "worker")),
        "runs code inside a sandbox, where nothing else does; its first process ends outside of one",
    ),
    "reward/sandbox/toy_functions.py": "works out the answers of its own table; nothing from outside gets there",
}


def unsafe(tree: ast.Module) -> Iterator[str]:
    """Each line that does one of it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from _imported(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from _imported([node.module or ""])
        elif isinstance(node, ast.Call):
            yield from _called(node)
        elif isinstance(node, ast.Dict):
            yield from _set(node.keys)
        elif isinstance(node, ast.Assign):
            yield from _set(target.slice for target in node.targets if isinstance(target, ast.Subscript))


def _imported(modules: Iterable[str]) -> Iterator[str]:
    yield from (f"imports {name}" for name in {module.partition(".")[0] for module in modules} & UNPICKLERS)


def _called(call: ast.Call) -> Iterator[str]:
    called = ast.unparse(call.func)
    given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
    if called in UNSAFE_CALLS:
        yield f"calls {called}"
    if called == "torch.load" and given.get("weights_only") != "True":
        yield "torch.load without weights_only=True"
    if given.get("shell", "False") != "False":
        yield f"{called} with a shell"
    if given.get("trust_remote_code", "False") != "False":
        yield f"{called} trusts remote code"


def _set(keys: Iterable[ast.expr | None]) -> Iterator[str]:
    names = {key.value for key in keys if isinstance(key, ast.Constant)}
    yield from (f"sets {name}" for name in names & NEVER_SET)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("import pickle", "imports pickle"),
        ("from cloudpickle import loads", "imports cloudpickle"),
        ("torch.load(f)", "torch.load without weights_only=True"),
        ("torch.load(f, weights_only=False)", "torch.load without weights_only=True"),
        ("yaml.load(text)", "calls yaml.load"),
        ("eval(text)", "calls eval"),
        ("subprocess.run(text, shell=True)", "subprocess.run with a shell"),
        ("Auto.from_pretrained(p, trust_remote_code=x)", "Auto.from_pretrained trusts remote code"),
        ("os.environ['VLLM_SERVER_DEV_MODE'] = '1'", "sets VLLM_SERVER_DEV_MODE"),
        ("env = {'VLLM_ALLOW_INSECURE_SERIALIZATION': '1'}", "sets VLLM_ALLOW_INSECURE_SERIALIZATION"),
    ],
)
def test_the_look_finds_what_it_looks_for(line: str, said: str) -> None:
    assert list(unsafe(ast.parse(line))) == [said]


def test_what_is_harmless_is_not_found() -> None:
    for line in (
        "torch.load(f, weights_only=True)",
        "model.eval()",
        "re.compile(x)",
        "yaml.safe_load(t)",
        "run(a, shell=False)",
    ):
        assert not list(unsafe(ast.parse(line)))


def test_no_file_of_the_product_does_it() -> None:
    found = {name_of(path): list(unsafe(parse(path))) for path in sources()}
    assert {name: lines for name, lines in found.items() if lines and name not in EXEMPT} == {}
