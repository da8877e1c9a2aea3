"""Each online algorithm with every role real: it learns, and what it leaves behind is what was promised."""

from __future__ import annotations

import json
import math
import os
import re
import signal
from pathlib import Path
from statistics import fmean

import pytest
import torch
from raylign.cluster.session import Session
from raylign.records.glossary import describe
from raylign.records.manifest import read_manifest
from raylign.records.metrics_log import MetricHistory, read_history
from raylign.records.run_folder import RunPaths
from raylign.records.samples import read_samples
from raylign.records.summary import read_summary
from raylign.rollout.worker import RayWorkerHandle
from raylign.trainer.checkpoint import open_checkpoint
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.system.served import check_served
from tests.system.tiny_runs import PPO_STEPS, RULE, play, run_settings
from tests.unit.reward.json_server import Reply, serving

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]

STEPS = 12
LEARNED = 0.06
"""Rise of the mean reward from the first three steps to the last three. By chance it is 0 +- 0.013: each mean is over
3 x 64 answers of 16 tokens."""

CONTRACT = {
    "reward/mean", "reward/std", "reward/low_token_share", "reward/failed", "policy/loss", "policy/kl",
    "policy/approx_kl", "policy/entropy", "policy/clip_fraction", "policy/grad_norm", "policy/lr", "policy/kl_coef",
    "rollout/response_length", "rollout/truncated_ratio", "rollout/logprob_gap", "rollout/logprob_gap_max",
    "sync/seconds", "sync/bytes", "sync/verified", "sync/canary_gap", "time/step", "time/generation", "time/sync",
}  # fmt: skip
CRITIC = {"critic/loss", "critic/explained_variance", "critic/clip_fraction", "critic/grad_norm"}


def column(history: MetricHistory, name: str) -> list[float]:
    """A metric of every trained step, none missing and none that is no number."""
    values = [value for step, value in history.series(name) if step > 0]
    assert all(value is not None for value in values), f"{name}: {values}"
    return [value for value in values if value is not None]


def check_metrics(run: RunPaths, steps: int, *, critic: bool, lost_at: int = 0) -> None:
    """One line a step, in the words of the contract, and the numbers that must hold in float32.

    `lost_at`: the step in whose publication one of the two engines was lost.
    """
    history = read_history(run.metrics)
    trained = [row for row in history.rows if row.step > 0]
    assert [row.step for row in trained] == list(range(1, steps + 1)) and history.unreadable_lines == 0
    for row in trained:
        assert row.values.keys() >= CONTRACT | (CRITIC if critic else set())
        assert critic or not any(name.startswith("critic/") for name in row.values)
    unknown = [n for n in history.names() if describe(n) is None]
    assert not unknown, f"names that docs/metrics.md does not explain: {unknown}"
    assert abs(column(history, "policy/kl")[0]) < 1e-4, "before the first update policy and reference are one model"
    assert abs(column(history, "policy/kl")[-1]) > 1e-3, "the policy was trained, so it has left the reference"
    assert max(column(history, "rollout/logprob_gap_max")) < 1e-3
    assert max(column(history, "sync/canary_gap")) < 1e-3
    verified = column(history, "sync/verified")
    whole = lost_at - 1 if lost_at else steps
    assert verified[:whole] == [2.0] * whole
    assert verified[whole : whole + 1] == [1.0] * bool(lost_at) and {1.0, 2.0} >= set(verified)
    assert column(history, "reward/failed") == [0.0] * steps
    assert all(0.0 < share <= 1.0 for share in column(history, "engine/kv_cache_peak"))
    assert column(history, "engine/preemptions") == [0.0] * steps


def check_samples(run: RunPaths, steps: int) -> None:
    """Every sample of every step, drawn by the policy of the step before, with the reward its tokens earn."""
    limit, means = int(RULE.partition(":")[2]), []
    for step in range(1, steps + 1):
        rows = read_samples(run.samples_file(step))
        assert len(rows) == len({row.key for row in rows}) == 64
        assert {(row.min_policy_version, row.max_policy_version) for row in rows} == {(step - 1, step - 1)}
        for row in rows:
            earned = sum(token < limit for token in row.response_ids) / len(row.response_ids)
            assert row.reward_components["low_token_share"] == pytest.approx(earned)
            assert len(row.rollout_logprobs) == len(row.response_ids) and row.advantage is not None
        means.append(fmean(row.reward_components["low_token_share"] for row in rows))
    assert means == pytest.approx(column(read_history(run.metrics), "reward/low_token_share"), abs=1e-5)


def check_ending(run: RunPaths, algorithm: str, steps: int) -> None:
    """Summary, checkpoint and report."""
    summary = read_summary(run.summary)
    assert (summary.algorithm, summary.steps) == (algorithm, steps) and summary.seconds_total > 0
    newest = run.checkpoints / (run.checkpoints / "LATEST").read_text().strip()
    assert open_checkpoint(newest).state.step == steps  # every byte is verified
    page = run.report.read_text(encoding="utf-8")
    assert algorithm in page
    outside = re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?(?:https?:)?//[^"')\s]+|@import""", page)
    assert not outside, outside


@pytest.fixture(scope="module", autouse=True)
def _the_shared_run_comes_first(ppo_run: RunPaths) -> None:
    """It starts a Ray of its own, which cannot be beside this module's."""


TURNS = ["cluster.placement=colocated"]  # engines sleep while learners train
BROADCAST = ["sync.transport=broadcast", "sync.timeout_s=60"]
LOST_AT = 4
ADAPTERS = ["policy.lora.rank=8", "policy.zero_stage=3", "policy.optim.lr=5e-3"]


@pytest.mark.parametrize(
    ("algorithm", "more"),
    [
        pytest.param("ppo", TURNS, id="ppo"),
        pytest.param("grpo", BROADCAST, id="grpo-broadcast"),
        # One loop runs them all; their estimates are held to slow ones in tests/unit/trainer/algorithms.
        pytest.param("rloo", [], id="rloo", marks=pytest.mark.thorough),
        pytest.param("reinforce_pp", [], id="reinforce_pp", marks=pytest.mark.thorough),
        pytest.param("grpo", ADAPTERS, id="grpo-lora", marks=pytest.mark.thorough),
    ],
)
def test_a_run_learns_and_leaves_what_it_promised(
    algorithm: str,
    more: list[str],
    ray_session: Session,
    tiny_model_dir: Path,
    questions: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By broadcast, with an engine that is killed between the rendezvous and the transfer of version LOST_AT."""
    received = _killed_in_a_broadcast(monkeypatch, LOST_AT) if more is BROADCAST else []
    settings = run_settings(algorithm, tiny_model_dir, questions, tmp_path)
    run = play([*settings, f"num_steps={STEPS}", f"name={algorithm}", *more], ray_session)

    check_metrics(run, STEPS, critic=algorithm == "ppo", lost_at=LOST_AT if more is BROADCAST else 0)
    check_samples(run, STEPS)
    check_ending(run, algorithm, STEPS)
    rewards = column(read_history(run.metrics), "reward/low_token_share")
    assert fmean(rewards[-3:]) > fmean(rewards[:3]) + LEARNED, rewards
    logs = {path.name for path in run.logs.iterdir()}
    assert any("reference" in name for name in logs) == (more is not ADAPTERS), (
        logs
    )  # with adapters the policy answers for it
    if more is TURNS:
        said = [(run.logs / f"rollout-{i}.log").read_text() for i in range(2)]
        assert all(text.count("sleep mode is not supported on CPU") >= STEPS for text in said), "nobody slept"
    if more is ADAPTERS:
        check_merged(run.export / f"step-{STEPS}", tiny_model_dir)
    if more is BROADCAST:
        assert received.count(received[0]) == LOST_AT + 1, "the killed engine was told to receive again"
        assert len(received) >= 2 * (LOST_AT + 1) + 1 + STEPS - LOST_AT, "a version came another way"


def _killed_in_a_broadcast(monkeypatch: pytest.MonkeyPatch, version: int) -> list[str]:
    """Who was told to receive weights, call by call; the first one is killed before it does at `version` (from 0)."""
    told: list[str] = []
    receive = RayWorkerHandle.receive_weights

    async def receive_or_die(self: RayWorkerHandle) -> None:
        told.append(self.name)
        if told.count(self.name) == version + 1 and self.name == told[0]:
            os.kill(await self.actor.__ray_call__.remote(lambda _: os.getpid()), signal.SIGKILL)
        await receive(self)

    monkeypatch.setattr(RayWorkerHandle, "receive_weights", receive_or_die)
    return told


AHEAD = 2


def test_generation_ahead_of_training_learns_as_much_and_no_sample_is_older_than_allowed(
    ray_session: Session, tiny_model_dir: Path, questions: Path, tmp_path: Path
) -> None:
    settings = run_settings("grpo", tiny_model_dir, questions, tmp_path)
    ahead = [f"rollout.max_staleness={AHEAD}", "rollout.max_refills=2", "algorithm.importance_mode=mask_tokens"]
    run = play([*settings, *ahead, f"num_steps={STEPS}", "name=ahead"], ray_session)
    history, oldest, keys = read_history(run.metrics), [], []
    for step in range(1, STEPS + 1):
        rows = read_samples(run.samples_file(step))
        keys += [row.key for row in rows]
        assert all(0 <= row.min_policy_version <= row.max_policy_version < step for row in rows)
        oldest.append(step - 1 - min(row.min_policy_version for row in rows))
    assert max(oldest) == AHEAD, "nothing was sampled ahead"
    assert oldest == column(history, "rollout/staleness_max")
    assert len(set(keys)) == len(keys) == 64 * STEPS, "a sample was trained on twice, or is missing"
    assert column(history, "ledger/trained")[-1] == 64 * STEPS
    rewards = column(history, "reward/low_token_share")
    assert fmean(rewards[-3:]) > fmean(rewards[:3]) + LEARNED, rewards
    unknown = [name for name in history.names() if describe(name) is None]
    assert not unknown, f"names that docs/metrics.md does not explain: {unknown}"


def test_a_reward_function_a_reward_server_and_held_out_metrics_of_ones_own(
    ray_session: Session, tiny_model_dir: Path, questions: Path, tmp_path: Path
) -> None:
    """It fails for one answer of each batch by name, and the run goes on with the others."""
    rows = [json.loads(line) | {"level": i} for i, line in enumerate(questions.read_text().splitlines())]
    asked = tmp_path / "asked.jsonl"
    asked.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "mine.py").write_text(
        "def length_of_mine(prompts, completions, level, **rest):\n"
        "    values = [float(len(c[0]['content'] if isinstance(c, list) else c)) + 0.001 * l\n"
        "              for c, l in zip(completions, level)]\n"
        "    return [None, *values[1:]]\n"
        "def seen(prompts, completions, level):\n"
        "    return {'answers': len(set(map(str, completions))), 'levels': sum(level)}\n"
        "def hangs(completions):\n    import time; time.sleep(60)\n"
    )
    hanging = f"{{path: '{tmp_path}/mine.py:hangs', timeout_s: 0.5}}"
    measured = f"evaluation.metrics=[{{path: '{tmp_path}/mine.py:seen'}}, {hanging}]"
    held_out = [f"data.eval={asked}", "evaluation.prompts=4", "evaluation.max_new_tokens=4", measured]
    settings = [s for s in run_settings("grpo", tiny_model_dir, asked, tmp_path) if not s.startswith("reward.rules")]
    given = f"reward.functions=[{{path: '{tmp_path}/mine.py:length_of_mine'}}]"
    (tmp_path / "rubric.md").write_text("Rate {{answer}} as an answer to {{prompt}}.")

    def answer(body: dict[str, list[str]], number: int) -> Reply:
        if "query" in body:
            return Reply({"rewards": [float(len(query)) for query in body["query"]]})
        return Reply({"choices": [{"message": {"content": "hm" if number % 16 == 5 else "Fine.\nScore: 7"}}]})

    with serving(answer) as server:
        served = f"reward.remote=[{{url: '{server.url}', weight: 0, name: served}}]"
        judge = f"reward.judges=[{{url: '{server.url}', model: wise, rubric: '{tmp_path}/rubric.md', weight: 0}}]"
        run = play([*settings, *held_out, given, served, judge, "num_steps=2", "name=own"], ray_session)
    history = read_history(run.metrics)
    assert min(column(history, "reward/length_of_mine")) > 0
    evaluated = [row.values for row in history.rows if "eval/held_out/reward" in row.values]
    assert [row["eval/held_out/seen/levels"] for row in evaluated] == [0 + 1 + 2 + 3] * 2  # before and after
    assert all("eval/held_out/hangs" not in row and row["eval/held_out/metrics_failed"] == 1 for row in evaluated)
    assert "eval/held_out/seen/answers" in run.report.read_text()
    assert "evaluation.metrics.seen/mine.py" in read_manifest(run.manifest).current.inputs
    assert min(column(history, "reward/served")) > min(column(history, "reward/length_of_mine"))
    queries = [query for body in server.bodies for query in body.get("query", [])]
    assert queries and all("<|im_start|>" in query for query in queries)
    assert set(column(history, "reward/judge")) == {7.0} and sum(column(history, "reward/unreadable")) > 0
    assert all(
        f >= u for f, u in zip(column(history, "reward/failed"), column(history, "reward/unreadable"), strict=True)
    )
    kept = [json.loads(line) for file in run.judged.glob("judge-*.jsonl") for line in file.read_text().splitlines()]
    tried = 2  # before the start, on made-up answers: not kept
    assert len(kept) == len(server.bodies) - sum("query" in body for body in server.bodies) - tried
    assert "reward.judges.judge.rubric" in read_manifest(run.manifest).current.inputs
    assert "reward.functions.length_of_mine/mine.py" in read_manifest(run.manifest).current.inputs
    assert all(count >= 1 for count in column(history, "reward/failed"))


TALK = """
class Talk:
    asked = 0

    async def reset(self, row, seed):
        self.left = 3
        return f"You have {self.left} turns."

    async def step(self, action):
        self.left -= 1
        return f"{self.left} left", len(action) / 100, self.left == 0

    async def final_reward(self, answer):
        Talk.asked += 1
        if Talk.asked % 8 == 3:
            raise ValueError("no judge")
        return 0.5
"""


def test_turns_with_an_environment_of_ones_own_ahead_of_training(
    ray_session: Session, tiny_model_dir: Path, questions: Path, tmp_path: Path
) -> None:
    """Its tokens are read by engine, policy and critic alike and trained by none; an unpaid episode leaves."""
    (tmp_path / "talk.py").write_text(TALK)
    settings = [s for s in run_settings("ppo", tiny_model_dir, questions, tmp_path) if "max_new_tokens" not in s]
    turns = [f"environment={tmp_path}/talk.py:Talk", "environment.max_turn_tokens=8", "rollout.max_new_tokens=100"]
    turns += ["rollout.max_model_len=256", "rollout.max_staleness=1", f"data.eval={questions}", "evaluation.prompts=4"]
    run = play([*settings, *turns, "reward.max_failed_fraction=0.3", "num_steps=2", "name=turns"], ray_session)
    history, tokenizer = read_history(run.metrics), AutoTokenizer.from_pretrained(tiny_model_dir)
    for step in (1, 2):
        rows = read_samples(run.samples_file(step))
        failed = [row for row in rows if row.reward_failure is not None]
        assert {row.reward_failure for row in failed} == {"the environment: final_reward raised ValueError: no judge"}
        assert len(rows) == 64 and all(row.advantage is None and row.reward is None for row in failed)
        for row in rows:
            assert 0 <= row.min_policy_version <= row.max_policy_version < step
            assert [turn.role for turn in row.turns] == ["assistant", "user", "assistant", "user", "assistant"]
            said = [tokenizer.decode(row.response_ids[a:b]) for a, b in row.holes]
            assert ["2 left" in said[0], "1 left" in said[1]] == [True, True]
            assert all(text.endswith("<|im_start|>assistant\n") for text in said)
            assert "You have 3 turns." in tokenizer.decode(row.prompt_ids)
            inside = {t for a, b in row.holes for t in range(a, b)}
            assert [t in inside for t in range(len(row.response_ids))] == [p == 0.0 for p in row.rollout_logprobs]
            assert len(row.response_ids) - len(inside) <= 3 * 8
        for row in (row for row in rows if row.reward_failure is None):
            paid = sum(len(turn.content.strip()) for turn in row.turns if turn.role == "assistant") / 100
            assert row.reward_components["environment"] == pytest.approx(0.5 + paid)
        assert column(history, "rollout/environment_failed")[step - 1] == len(failed) > 0
    assert column(history, "reward/failed") == column(history, "rollout/environment_failed")
    assert column(history, "rollout/turns") == [3.0, 3.0]
    fresh = column(history, "rollout/logprob_gap_max")[0]  # the second step's samples are of older weights
    assert fresh < 1e-3, "engine and trainer read another stream"
    assert all(
        "eval/held_out/environment" in row.values for row in history.rows if "eval/held_out/reward" in row.values
    )
    assert "environment/talk.py" in read_manifest(run.manifest).current.inputs


def test_ppo_with_adapters_in_policy_and_critic_serves_them_merged(
    ray_session: Session, tiny_model_dir: Path, questions: Path, tmp_path: Path
) -> None:
    settings = run_settings("ppo", tiny_model_dir, questions, tmp_path)
    run = play([*settings, *ADAPTERS, "critic.lora.rank=4", "num_steps=2", "name=ppo-lora"], ray_session)
    check_metrics(run, 2, critic=True)
    check_samples(run, 2)
    check_ending(run, "ppo", 2)
    check_merged(run.export / "step-2", tiny_model_dir)
    engine_gaps = column(read_history(run.metrics), "sync/canary_gap")
    assert max(engine_gaps) < 1e-3, "the engines serve other weights than the learner's, merged"


def check_merged(export: Path, start: Path) -> None:
    """A plain folder in which adapted layers have moved and frozen weights have not."""
    before, after = load_file(start / "model.safetensors"), load_file(export / "model.safetensors")
    assert before.keys() == after.keys()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {name for name in before if "_proj." in name}
    assert "LoRA, merged" in (export / "README.md").read_text()


def test_the_export_answers_as_the_engine_that_serves_it(
    ppo_run: RunPaths, ray_session: Session, tiny_model_dir: Path
) -> None:
    """Transformers loads it, it is not the model the run began with, and a new engine gives its log-probs."""
    folder = ppo_run.export / f"step-{PPO_STEPS}"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.chat_template == AutoTokenizer.from_pretrained(tiny_model_dir).chat_template
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    start = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32)
    assert not torch.equal(model.model.embed_tokens.weight, start.model.embed_tokens.weight)
    check_served(folder)


def test_held_out_answers_are_scored_before_and_after(ppo_run: RunPaths) -> None:
    """The figures of summary.json are the means of the answers that are on disk beside it."""
    summary = read_summary(ppo_run.summary)
    pairs = [json.loads(line) for line in ppo_run.answers.read_text().splitlines()]
    assert len(pairs) == 4
    assert summary.gold_score_before == pytest.approx(fmean(pair["gold_before"] for pair in pairs))
    assert summary.gold_score_after == pytest.approx(fmean(pair["gold_after"] for pair in pairs))
    assert any(pair["before"] != pair["after"] for pair in pairs)
    assert summary.preference_comparisons == 4 and summary.preference_vs_start is not None
    assert summary.fluency_before is not None and summary.fluency_after is not None
    assert math.isfinite(summary.fluency_before) and summary.fluency_after != summary.fluency_before
