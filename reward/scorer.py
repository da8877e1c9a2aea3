"""Reward model and rules together: whole groups in, one raw outcome a completion out. No Ray here."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence

from raylign.conf.schema import Device, RewardConfig
from raylign.data.types import Completion, Prompt, Reward, RewardFailure, RewardOutcome, RolloutGroup
from raylign.reward.functions import FunctionProcess, FunctionSource, Sample
from raylign.reward.interfaces import RewardRule, RewardRuleError, WeightedComponent
from raylign.reward.model_scorer import ModelScorer
from raylign.reward.rules import build_rule, component_names, score_rules
from raylign.reward.shaping import weighted_sum

MODEL_COMPONENT = "model"


class ComposedScorer:
    """A RewardScorer: weighted sum of the reward model's score and the rules'. Shaping comes later, over the step."""

    def __init__(self, config: RewardConfig, device: Device, functions: Sequence[FunctionSource] = ()) -> None:
        """`functions`: one for each of `config.functions`.

        Raises ConfigError for an unusable rule and ModelLoadError for an unusable model.
        """
        specs = [rule.rule for rule in config.rules]
        names = component_names(specs)
        self._rules: Mapping[str, RewardRule] = {n: build_rule(s) for n, s in zip(names, specs, strict=True)}
        self._weights = [WeightedComponent(n, r.weight) for n, r in zip(names, config.rules, strict=True)]
        self._functions = {
            source.name: FunctionProcess(source, given.timeout_s)
            for source, given in zip(functions, config.functions, strict=True)
        }
        self._weights += [
            WeightedComponent(source.name, given.weight)
            for source, given in zip(functions, config.functions, strict=True)
        ]
        self._model: ModelScorer | None = None
        if config.model:
            self._model = ModelScorer(
                config.model,
                precision=config.precision,
                device=device,
                micro_batch_tokens=config.micro_batch_tokens,
            )
            self._weights.append(WeightedComponent(MODEL_COMPONENT, config.model_weight))

    def score(self, groups: Sequence[RolloutGroup]) -> list[RewardOutcome]:
        """One outcome a completion, in order. What fails for one sample fails that sample only."""
        samples = [(g.prompt, c) for g in groups for c in g.completions]
        parts = [self._rule_scores(prompt, completion) for prompt, completion in samples]
        if self._functions:
            parts = self._with_functions(samples, parts)
        if self._model is not None:
            parts = self._with_model(self._model, samples, parts)
        return [self._outcome(c, part) for (_, c), part in zip(samples, parts, strict=True)]

    def _rule_scores(self, prompt: Prompt, completion: Completion) -> Mapping[str, float] | str:
        """Components by name, or why there are none."""
        try:
            return score_rules(self._rules, prompt, completion)
        except RewardRuleError as error:
            return str(error)

    def _with_functions(
        self, samples: Sequence[tuple[Prompt, Completion]], parts: Sequence[Mapping[str, float] | str]
    ) -> list[Mapping[str, float] | str]:
        """One call a function for all samples."""
        scored = list(parts)
        asked = [_sample(prompt, completion) for prompt, completion in samples]
        for name, process in self._functions.items():
            for i, value in enumerate(process.score(asked)):
                part = scored[i]
                if not isinstance(part, str):
                    scored[i] = f"reward function {name}: {value}" if isinstance(value, str) else {**part, name: value}
        return scored

    @staticmethod
    def _with_model(
        model: ModelScorer, samples: Sequence[tuple[Prompt, Completion]], parts: Sequence[Mapping[str, float] | str]
    ) -> list[Mapping[str, float] | str]:
        scored = list(parts)
        sequences: dict[int, tuple[int, ...]] = {}
        for i, (prompt, completion) in enumerate(samples):
            try:
                sequences[i] = model.sequence(prompt, completion)
            except RewardRuleError as error:
                scored[i] = str(error)
        prompt_tokens = [len(samples[i][0].token_ids) for i in sequences]
        for i, score in zip(sequences, model.score(list(sequences.values()), prompt_tokens), strict=True):
            part = scored[i]
            if isinstance(part, str):
                continue
            scored[i] = {**part, MODEL_COMPONENT: score} if math.isfinite(score) else f"the reward model gave {score}"
        return scored

    def _outcome(self, completion: Completion, part: Mapping[str, float] | str) -> RewardOutcome:
        if isinstance(part, str):
            return RewardFailure(completion.key, part)
        return Reward(completion.key, weighted_sum(part, self._weights), part)


def _sample(prompt: Prompt, completion: Completion) -> Sample:
    """What a function may be told."""
    turns = tuple((message.role, message.content) for message in prompt.messages)
    before = turns[-1][1] if len(turns) == 1 else "\n".join(f"{role}: {content}" for role, content in turns)
    return Sample(
        prompt=before,
        completion=completion.text,
        messages=turns,
        completion_ids=completion.response_ids,
        query=before + completion.text,
        data_source=prompt.data_source,
        ground_truth=prompt.ground_truth,
        columns=json.loads(prompt.columns) if prompt.columns else {},
    )
