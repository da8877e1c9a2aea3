"""`environment=`: named like an algorithm, refused in words before Ray starts, and offered by every prompt."""

from __future__ import annotations

import json
import shutil
from datetime import date
from pathlib import Path

import pytest
from raylign.app.commands.submit import tokens
from raylign.app.configuration import compose, needs, roles
from raylign.app.launch.demand import cpus_per_worker, role_requests
from raylign.app.launch.environment import (
    environment_files,
    environment_rows,
    environment_tools,
    run_environment,
)
from raylign.app.launch.refusals import refuse_impossible
from raylign.app.launch.rows import read_online
from raylign.conf.errors import ConfigError
from raylign.conf.schema import RunConfig

from tests.unit.rollout.environment_servers import OpenEnvServer, serving

OWN = '''
class Counter:
    def add(self, amount: int) -> int:
        """Add.

        Args:
            amount: how much
        """
        return amount
'''


@pytest.fixture
def base(tiny_model_dir: Path, tmp_path: Path) -> list[str]:
    data = tmp_path / "rows.jsonl"
    rows = [{"prompt": "What is 2 + 2?", "ground_truth": "4"}, {"prompt": "What is 3 + 2?", "ground_truth": "5"}]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return ["+experiment=grpo_tiny_cpu", f"policy.model={tiny_model_dir}", f"data.train={data}"]


def _config(base: list[str], *more: str) -> RunConfig:
    return compose([*base, *more]).config


def test_an_environment_is_named_as_an_algorithm_is_and_is_a_reward_of_its_own(base: list[str]):
    config = _config(base, "environment=calculator")
    assert config.environment.name == "calculator"
    assert _config(base, "environment.name=calculator").environment == config.environment
    spec = run_environment(config, "", date(2031, 2, 3))
    assert spec is not None and spec.code is None
    assert run_environment(_config(base, "reward.rules=[{rule: finished}]"), "", None) is None
    with pytest.raises(ConfigError, match="nothing scores the answers"):
        _config(base)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            ["reward.rules=[{rule: finished}]", "environment.max_turns=3"],
            "environment.max_turns=3: there is no environ",
        ),
        (["environment=shop", "environment.max_turns=0"], "environment.max_turns=0: must be at least 1"),
        (["environment=shop", "environment.max_turn_tokens=4000"], "a whole episode may have"),
        (["environment=shop", "environment.processes=2"], "environment=shop has no process of its own; leave it out"),
        (["environment=openenv:http://h:1", "environment.memory_gb=2"], "environment.memory_gb=2: environment=openenv"),
        (["environment=shop", "environment.timeout_s=4000"], "is not below rollout.timeout_s"),
    ],
)
def test_settings_that_cannot_work_together_are_refused(base: list[str], given: list[str], said: str):
    with pytest.raises(ConfigError) as refused:
        _config(base, *given)
    assert said in str(refused.value)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["environment=calculater"], "environment=calculater: no environment has this name; did you mean calculator?"),
        (["environment=gone.py:Mine"], "environment=gone.py:Mine: there is no file gone.py"),
        (
            ["environment=shop", "reward.judges=[{url: 'http://127.0.0.1:1', model: m, rubric: r, name: environment}]"],
            "one of its parts is called environment",
        ),
        (["environment=search"], "environment=search: it cannot be made when given nothing"),
        (["environment=search", "environment.arguments.documents=nowhere"], "there is no .txt or .md file"),
    ],
)
def test_an_environment_that_cannot_be_used_is_refused_before_ray(base: list[str], given: list[str], said: str):
    config = _config(base, *given)
    with pytest.raises(ConfigError) as refused:
        refuse_impossible(config, needs(config))
    assert said in str(refused.value)


def test_an_offline_algorithm_acts_in_nothing(base: list[str]):
    with pytest.raises(ConfigError, match=r"environment=calculator: algorithm=sft samples no answers.*leave it out"):
        compose([*base[1:], "algorithm=sft", "environment=calculator"])


def test_the_plan_names_the_environment_and_its_tools(base: list[str], tmp_path: Path):
    rows = dict(environment_rows(_config(base, "environment=shop", "environment.max_turns=5")))
    assert rows["tools"] == "add, cart, pay, products, remove" and rows["turns"].startswith("at most 5")
    assert environment_rows(_config(base, "reward.rules=[{rule: finished}]")) == []


def test_a_server_is_looked_at_before_the_run_and_sent_along(base: list[str], monkeypatch: pytest.MonkeyPatch):
    with serving(OpenEnvServer(room=8).app()) as url:
        config = _config(base, f"environment=openenv:{url}")
        refuse_impossible(config, needs(config))
        spec = run_environment(config, "", None)
    assert dict(environment_rows(config))["runs"] == "on its server"
    assert spec is not None and spec.form is not None and spec.form.tools == environment_tools(config)
    assert environment_files(config.environment) == {}
    for given, said in (
        ([f"environment=openenv:{url}x"], "it is not an address"),
        (["environment=nemo_gym:http://u:p@127.0.0.1:1"], "environment=nemo_gym:http://127.0.0.1:1: it holds a user"),
        ([f"environment=nemo_gym:{url}"], "no connection"),
        ([f"environment=nemo_gym:{url}", "environment.token_env=NOT_SET"], "NOT_SET: this variable is not set"),
        (["environment=nemo_gym:http://far:1", "environment.token_env=IT_IS"], "the token would travel unencrypted"),
    ):
        monkeypatch.setenv("IT_IS", "secret-token")
        config = _config(base, *given)
        with pytest.raises(ConfigError) as refused:
            refuse_impossible(config, needs(config))
        assert said in str(refused.value)
    assert tokens(_config(base, f"environment=nemo_gym:{url}", "environment.token_env=IT_IS"), {"IT_IS": "x"}) == [
        "IT_IS"
    ]


def test_a_template_that_cannot_go_on_after_a_turn_is_refused(base: list[str], tmp_path: Path):
    template = tmp_path / "own.jinja"
    template.write_text("{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}")
    config = _config(base, "environment=calculator", f"data.chat_template={template}")
    with pytest.raises(ConfigError, match=r"environment=calculator with policy\.model=.*writes no end token"):
        refuse_impossible(config, needs(config))


def test_the_processes_of_an_own_class_count_among_the_engines_cpus(base: list[str]):
    given = ["rollout.cpus_per_worker=0.5", "environment.cpus_per_process=0.25", "environment.processes=2"]
    config = _config(base, "environment=mine.py:Mine", *given, "environment.memory_gb=2")
    assert cpus_per_worker(config) == 1.0 and cpus_per_worker(_config(base, "environment=shop", given[0])) == 0.5
    [rollout] = [r for r in role_requests(config, roles(config)) if r.role == "rollout"]
    assert rollout.cpus == 1.0


def test_every_prompt_offers_the_tools(base: list[str]):
    room = ["data.max_prompt_tokens=1000", "rollout.max_model_len=2000"]  # the tiny tokenizer writes tools by letters
    rows = read_online(_config(base, "environment=calculator", *room), date(2031, 2, 3))
    for prompt in rows.train.prompts:
        assert prompt.messages[0].role == "system" and '"name": "calculate"' in prompt.messages[0].content
        assert "calculate" in rows.tokenizer.decode(prompt.token_ids)
    plain = read_online(_config(base, "reward.rules=[{rule: finished}]", *room), date(2031, 2, 3))
    assert plain.train.digest != rows.train.digest, "a data position of the one is none of the other"


@pytest.mark.slow
def test_a_class_of_ones_own_is_looked_at_in_its_own_process_and_sent_along(base: list[str], tmp_path: Path):
    file = tmp_path / "own" / "counting.py"
    file.parent.mkdir()
    file.write_text(OWN)
    config = _config(base, f"environment={file}:Counter")
    assert [tool["function"]["name"] for tool in environment_tools(config)] == ["add"]
    assert environment_files(config.environment) == {"environment/counting.py": file}
    spec = run_environment(config, "", None)
    shutil.rmtree(file.parent)
    assert spec is not None and spec.code is not None and dict(spec.code.files) == {"counting.py": OWN}
