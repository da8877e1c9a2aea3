"""What is read of a row's tests and of an answer."""

from __future__ import annotations

import pytest
from raylign.reward.code_tests import AssertTests, OutputTests, TestsError, code_of, read_tests, same_output


@pytest.mark.parametrize(
    "value",
    [
        [{"input": "1", "output": "2"}],
        {"inputs": ["1"], "outputs": ["2"]},
        '{"inputs": ["1"], "outputs": ["2"]}',
        '[{"input": "1", "output": "2"}]',
    ],
)
def test_pairs_of_input_and_output(value: object) -> None:
    assert read_tests(value) == OutputTests((("1", "2"),))


@pytest.mark.parametrize("value", ["assert f(1) == 2\nassert f(2) == 3", ["assert f(1) == 2", "assert f(2) == 3"]])
def test_asserts_as_one_text_or_several(value: object) -> None:
    read = read_tests(value)
    assert isinstance(read, AssertTests)
    assert read.count == 2 and read.names == ("f",)


def test_what_prepares_is_no_test_and_a_function_that_asserts_is_one_where_it_is_called() -> None:
    read = read_tests(
        "import math\n'''About.'''\ndef check(f):\n    for x in range(3):\n        assert f(x) == math.floor(x)\n"
        "s = Stack()\ns.push(1)\nassert s.pop() == 1\ncheck(down)\n"
        "try:\n    down('x')\n    assert False\nexcept TypeError as error:\n    pass\n"
    )
    assert isinstance(read, AssertTests)
    assert [counts for _, counts in read.tests] == [False, False, False, False, False, True, True, True]
    assert read.names == ("Stack", "down")


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("f(1)", "no assert"),
        ("def check(f):\n    assert f(1)", "no assert"),
        ("assert 1 == 1", "nothing that the answer could define"),
        ("assert (", "no Python"),
        ([], "neither"),
        (7, "neither"),
        ([{"input": "1", "output": " \n"}], "does nothing"),
        ([{"input": "1"}], "are texts"),
        ({"inputs": ["1"], "outputs": []}, "two lists"),
    ],
)
def test_what_cannot_test_anything_is_refused(value: object, why: str) -> None:
    with pytest.raises(TestsError, match=why):
        read_tests(value)


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        ("I do not know.", None),
        ("```python\na\n```\nor\n```python\nb\n```", "b"),
        ("```python\na\n```\nwhich prints\n```\n7\n```", "a"),
        ("```\na\n```", "a"),
        ("```bash\nls\n```", None),
        ("  ```py\n  a\n", "  a\n"),
        ("```Python\na", "a"),
    ],
)
def test_the_last_block_of_python(answer: str, code: str | None) -> None:
    assert code_of(answer) == code


def test_outputs_may_differ_in_white_space_at_ends_alone() -> None:
    assert same_output(b"1 \n2\n\n", "1\n2")
    assert not same_output(b"1  2", "1 2")
    assert not same_output(b"", "1")
