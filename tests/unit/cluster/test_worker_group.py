"""Telling a rank's failures apart, without a cluster."""

from __future__ import annotations

from ray.exceptions import ActorDiedError, RayTaskError
from raylign.cluster.errors import FailureKind
from raylign.cluster.worker_group import classify, refusal
from raylign.conf.errors import ConfigError, ModelLoadError, RunFailed


def raised(cause: Exception) -> RayTaskError:
    return RayTaskError("start", "Traceback ...", cause)


def test_what_the_user_can_mend_is_raised_as_the_rank_raised_it():
    refused = refusal(raised(ConfigError(["reward.rule=x: no such rule", "reward.clip=-1: must be positive"])))
    assert isinstance(refused, ConfigError) and refused.exit_code == 2
    assert refused.problems == ("reward.rule=x: no such rule", "reward.clip=-1: must be positive")
    assert isinstance(refusal(raised(ModelLoadError("no such folder")).as_instanceof_cause()), ModelLoadError)


def test_other_failures_stay_failures_of_the_role():
    for error in (raised(ValueError("loss is nan")), raised(RunFailed("broken")), ActorDiedError(), TimeoutError()):
        assert refusal(error) is None
    assert classify(raised(ValueError("loss is nan"))) == (FailureKind.RAISED, "ValueError: loss is nan")
