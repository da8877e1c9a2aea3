"""Everything that judges an answer, together: whole groups in, one raw outcome a completion out. No Ray here."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import date
from functools import partial
from typing import TYPE_CHECKING

from raylign.conf.errors import ConfigError
from raylign.conf.schema import (
    CodeRewardConfig,
    Device,
    JudgeRewardConfig,
    RemoteProtocol,
    RemoteRewardConfig,
    RewardConfig,
)
from raylign.data.types import Completion, FinishReason, Prompt, Reward, RewardFailure, RewardOutcome, RolloutGroup
from raylign.records.redaction import Redactor
from raylign.reward.code_scorer import CodeScorer
from raylign.reward.function_messages import FunctionError, Style
from raylign.reward.function_process import FunctionProcess
from raylign.reward.http_json import Endpoint, EndpointError
from raylign.reward.interfaces import RewardRule, RewardRuleError, WeightedComponent
from raylign.reward.judge import Judge, JudgeScorer, chat_address
from raylign.reward.judge_cache import JudgeCache
from raylign.reward.remote import RemoteScorer
from raylign.reward.rules import build_rule, component_names, score_rules
from raylign.reward.samples import NotScored, Sample, SampleScorer, Score
from raylign.reward.sandbox.isolation import NoIsolationError
from raylign.reward.sandbox.limits import Limits
from raylign.reward.shaping import weighted_sum
from raylign.reward.sources import RewardSources

if TYPE_CHECKING:  # transformers is four seconds of a start, and rules and judges do without it
    from raylign.reward.text_scorer import Scorable
    from transformers import PreTrainedTokenizerBase

MODEL_COMPONENT = "model"
SPREAD_COMPONENT = "model_spread"
"""How far the heads of the reward model's ensemble are from each other about an answer."""
ENVIRONMENT_COMPONENT = "environment"
"""What the environment of an episode gave in all."""
CALL_SHARE = 0.45
"""Of reward.timeout_s, what the judges of one batch may take: a replica has half of it, and this leaves an answer time
to arrive."""


@dataclass(slots=True)
class _Found:
    """What is known of one sample so far."""

    components: dict[str, float] = field(default_factory=dict)
    failed: NotScored | None = None  # the first failure

    def add(self, name: str, score: Score, what: str) -> None:
        if isinstance(score, NotScored):
            self.fail(NotScored(f"{what}: {score.reason}", score.unreadable))
        elif score is not None:
            self.components[name] = score

    def fail(self, why: NotScored) -> None:
        self.failed = self.failed or why


@dataclass(frozen=True, slots=True)
class _Model:
    """A reward model: how it reads a sample (RewardRuleError: it cannot), and what it makes of it."""

    read: Callable[[Prompt, Completion], Scorable]
    score: Callable[[Sequence[Scorable]], list[dict[str, float]]]  # components by name


def _loaded(config: RewardConfig, device: Device, today: date | None) -> _Model:
    """The token ids as they were sampled, or the text in the model's own tokens."""
    from raylign.reward.text_scorer import TextScorer, TokenScorer

    kind = partial(TextScorer, today=today) if config.retokenize else TokenScorer
    model = kind(
        config.model,
        precision=config.precision,
        device=device,
        micro_batch_tokens=config.micro_batch_tokens,
        ranks=config.ranks_per_replica,
    )
    if config.uncertainty_penalty:
        return _Model(model.sampled, lambda read: [
            {MODEL_COMPONENT: one.score, SPREAD_COMPONENT: one.spread} for one in model.judged(read)
        ])  # fmt: skip
    return _Model(model.sampled, lambda read: [{MODEL_COMPONENT: score} for score in model.score(read)])


class ComposedScorer:
    """A RewardScorer: the weighted sum of all components. Shaping comes later, over the step."""

    def __init__(self, config: RewardConfig, device: Device, sources: RewardSources | None = None) -> None:
        """Raises ConfigError for an unusable rule, function or token, and ModelLoadError for an unusable model."""
        sources = sources or RewardSources()
        specs = [rule.rule for rule in config.rules]
        names = component_names(specs)
        self._rules: Mapping[str, RewardRule] = {n: build_rule(s) for n, s in zip(names, specs, strict=True)}
        self._weights = [WeightedComponent(n, r.weight) for n, r in zip(names, config.rules, strict=True)]
        self._environment_weight = sources.environment_weight or 0.0
        if sources.environment_weight is not None:
            self._weights.append(WeightedComponent(ENVIRONMENT_COMPONENT, sources.environment_weight))
        self._judges: dict[str, tuple[str, SampleScorer]] = {}
        self._add_functions(config, sources)
        self._add_remotes(config)
        self._add_judges(config, sources)
        for code in config.code:
            self._judges[code.name] = (f"code reward {code.name}", _code_scorer(code, config.timeout_s * CALL_SHARE))
            self._weights.append(WeightedComponent(code.name, code.weight))
        self._writer: PreTrainedTokenizerBase | None = None
        reads = [source.style is Style.openrlhf for source in sources.functions]
        reads += [remote.protocol in (RemoteProtocol.openrlhf, RemoteProtocol.classify) for remote in config.remote]
        if any(reads):
            from raylign.data.tokenize import load_tokenizer

            self._writer = load_tokenizer(sources.policy_model)
        self._model: _Model | None = None
        if config.model:
            self._model = _loaded(config, device, sources.today)
            self._weights.append(WeightedComponent(MODEL_COMPONENT, config.model_weight))
            if config.uncertainty_penalty:
                weight = -config.model_weight * config.uncertainty_penalty
                self._weights.append(WeightedComponent(SPREAD_COMPONENT, weight))
        self._redactor = Redactor.from_environ(os.environ)

    def _add_functions(self, config: RewardConfig, sources: RewardSources) -> None:
        for source, given in zip(sources.functions, config.functions, strict=True):
            process = FunctionProcess(
                source.code,
                timeout_s=given.timeout_s,
                start_timeout_s=given.start_timeout_s,
                batch_timeout_s=config.timeout_s * CALL_SHARE,
            )
            try:
                process.load()  # now, not in the first batch's time
            except FunctionError as error:
                raise ConfigError([f"reward.functions: {given.path}: {error}."]) from error
            self._judges[source.name] = (f"reward function {source.name}", process)
            self._weights.append(WeightedComponent(source.name, given.weight))

    def _add_remotes(self, config: RewardConfig) -> None:
        for given in config.remote:
            endpoint = _endpoint(f"reward.remote {given.name}", given.url, given)
            remote = RemoteScorer(endpoint, given.protocol, given.batch_size, given.max_concurrent, given.timeout_s)
            self._judges[given.name] = (f"reward server {given.name}", remote)
            self._weights.append(WeightedComponent(given.name, given.weight))

    def _add_judges(self, config: RewardConfig, sources: RewardSources) -> None:
        for given, rubric in zip(config.judges, sources.rubrics, strict=True):
            endpoint = _endpoint(f"reward.judges {given.name}", chat_address(given.url), given)
            judge = Judge(given.model, rubric, given.low, given.high, given.max_new_tokens, given.request)
            cache = JudgeCache(sources.judged_folder, given.name)
            scorer = JudgeScorer(endpoint, judge, cache, given.max_concurrent, given.timeout_s)
            self._judges[given.name] = (f"judge {given.name}", scorer)
            self._weights.append(WeightedComponent(given.name, given.weight))

    def score(self, groups: Sequence[RolloutGroup]) -> list[RewardOutcome]:
        """One outcome a completion, in order. What fails for one sample fails that sample only."""
        samples = [(g.prompt, c) for g in groups for c in g.completions]
        found = [self._rule_scores(prompt, completion) for prompt, completion in samples]
        if self._judges and samples:
            self._ask_judges(samples, found)
        if self._model is not None:
            self._ask_model(self._model, samples, found)
        return [self._outcome(c, f) for (_, c), f in zip(samples, found, strict=True)]

    def trial(self, groups: Sequence[RolloutGroup]) -> dict[str, list[Score]]:
        """What each function, server and judge gives for these answers, by its name in metrics."""
        samples = [sample_of(g.prompt, c, self._writer) for g in groups for c in g.completions]
        with ThreadPoolExecutor(len(self._judges)) as threads:
            scores = threads.map(lambda judge: judge[1].score(samples), self._judges.values())
            return dict(zip(self._judges, scores, strict=True))

    def stop(self) -> None:
        """End the processes of functions, and sandboxes. A reward server's end with it."""
        for _, judge in self._judges.values():
            if isinstance(judge, FunctionProcess | CodeScorer):
                judge.stop()

    def _rule_scores(self, prompt: Prompt, completion: Completion) -> _Found:
        """By the episode's environment and by rules. Where the environment failed, nothing else counts."""
        episode = completion.episode
        if episode is not None and episode.failure:
            return _Found(failed=NotScored(f"the environment: {episode.failure}"))
        try:
            found = _Found(dict(score_rules(self._rules, prompt, completion)))
        except RewardRuleError as error:
            return _Found(failed=NotScored(str(error)))
        if episode is not None and episode.rewards:
            found.components[ENVIRONMENT_COMPONENT] = math.fsum(value for _, value in episode.rewards)
        return found

    def _ask_judges(self, samples: Sequence[tuple[Prompt, Completion]], found: Sequence[_Found]) -> None:
        """All of them side by side: they wait for other processes and machines."""
        asked = [sample_of(prompt, completion, self._writer) for prompt, completion in samples]
        with ThreadPoolExecutor(len(self._judges)) as threads:
            answers = threads.map(lambda judge: _with_verdicts(judge[1], asked), self._judges.values())
            for (name, (what, _)), scores in zip(self._judges.items(), answers, strict=True):
                for one, (score, verdicts) in zip(found, scores, strict=True):
                    one.add(name, score, what)
                    one.components.update({f"{name}/{verdict}": value for verdict, value in verdicts.items()})

    @staticmethod
    def _ask_model(model: _Model, samples: Sequence[tuple[Prompt, Completion]], found: Sequence[_Found]) -> None:
        read: dict[int, Scorable] = {}
        for i, (prompt, completion) in enumerate(samples):
            try:
                read[i] = model.read(prompt, completion)
            except RewardRuleError as error:
                found[i].fail(NotScored(str(error)))
        for i, scores in zip(read, model.score(list(read.values())), strict=True):
            for name, score in scores.items():
                scored = score if math.isfinite(score) else NotScored(f"it gave {score}")
                found[i].add(name, scored, "the reward model")

    def _outcome(self, completion: Completion, found: _Found) -> RewardOutcome:
        """A component that does not apply is left out of the sum; when none with a weight is left, there is none."""
        applying = [w for w in self._weights if w.name in found.components]
        if found.failed is None and len(applying) < len(self._weights) and not any(w.weight for w in applying):
            missing = [w.name for w in self._weights if w.weight and w.name not in found.components]
            found.fail(NotScored(f"{', '.join(missing)} gave None, not applicable, and nothing else scored the answer"))
        if found.failed is not None:
            reason = self._redactor.text(found.failed.reason)
            return RewardFailure(completion.key, reason, found.failed.unreadable)
        episode, last = completion.episode, len(completion.response_ids) - 1
        given = episode.rewards if episode is not None else ()
        steps = tuple((token, self._environment_weight * value) for token, value in given if token != last)
        return Reward(completion.key, weighted_sum(found.components, applying), found.components, steps)


def _with_verdicts(judge: SampleScorer, asked: Sequence[Sample]) -> Sequence[tuple[Score, Mapping[str, float]]]:
    """Scores, and what else is known of each answer: what came of its code."""
    if isinstance(judge, CodeScorer):
        return judge.verdicts(asked)
    return [(score, {}) for score in judge.score(asked)]


def _code_scorer(given: CodeRewardConfig, batch_timeout_s: float) -> CodeScorer:
    """Raises ConfigError where code cannot be isolated."""
    limits = Limits(
        cpu_s=given.cpu_s, timeout_s=given.timeout_s, memory_mb=given.memory_mb, processes=given.processes,
        disk_mb=given.disk_mb, output_kb=given.output_kb, open_files=given.open_files,
    )  # fmt: skip
    try:
        return CodeScorer(
            given.tests, limits, partial_credit=given.partial_credit, workers=given.workers,
            batch_timeout_s=batch_timeout_s,
        )  # fmt: skip
    except NoIsolationError as error:
        raise ConfigError(
            [f"reward.code: no sandbox can be made on this machine, and nothing is run without: {error}."]
        ) from error


def _endpoint(what: str, url: str, given: RemoteRewardConfig | JudgeRewardConfig) -> Endpoint:
    """Raises ConfigError when its token is not on this machine."""
    try:
        return Endpoint.from_environ(url, given.token_env, given.request_timeout_s)
    except EndpointError as error:
        raise ConfigError([f"{what}: {error}."]) from error


def sample_of(prompt: Prompt, completion: Completion, writer: PreTrainedTokenizerBase | None = None) -> Sample:
    """What a judge may be sent. `writer`: the policy's tokenizer, when somebody reads the text with its template."""
    turns = tuple((message.role, message.content) for message in prompt.messages)
    before = turns[-1][1] if len(turns) == 1 else "\n".join(f"{role}: {content}" for role, content in turns)
    return Sample(
        prompt=before,
        completion=completion.text,
        messages=turns,
        completion_ids=completion.response_ids,
        data_source=prompt.data_source,
        ground_truth=prompt.ground_truth,
        columns=json.loads(prompt.columns) if prompt.columns else {},
        finished=completion.finish_reason is FinishReason.STOP,
        templated_prompt=_decoded(writer, prompt.token_ids),
        templated_query=_decoded(writer, (*prompt.token_ids, *completion.response_ids)),
    )


def _decoded(writer: PreTrainedTokenizerBase | None, ids: Sequence[int]) -> str:
    if writer is None:
        return ""
    text = writer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
    assert isinstance(text, str)
    return text
