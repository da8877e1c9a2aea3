"""The simulated user's choices follow its stated taste, with the stated noise, whatever the order."""

from __future__ import annotations

import math

from data.types import Completion, FinishReason, Message, Prompt, SampleKey
from feedback.simulated_user import SimulatedUser


def prompt(i: int) -> Prompt:
    return Prompt(f"p{i}", (Message("user", f"question {i}"),), (1,))


def answer(text: str, reason: FinishReason = FinishReason.STOP) -> Completion:
    return Completion(SampleKey(0, "p", 0), (1,), (0.0,), reason, 0, 0, text)


def shorter(_: Prompt, completion: Completion) -> float:
    return -float(len(completion.text))


def test_without_noise_the_better_answer_wins_in_both_positions() -> None:
    user = SimulatedUser(shorter, noise=0.0, seed=0)
    for shown in ([answer("ab"), answer("abcd")], [answer("abcd"), answer("ab")]):
        pick = user.pick(prompt(0), shown)
        assert pick is not None and (pick.chosen, pick.rejected) == ("ab", "abcd")


def test_noise_flips_choices_at_the_bradley_terry_rate() -> None:
    user = SimulatedUser(shorter, noise=2.0, seed=3)
    picks = [user.pick(prompt(i), [answer("ab"), answer("abcd")]) for i in range(4000)]
    share = sum(p is not None and p.chosen == "ab" for p in picks) / len(picks)
    expected = 1 / (1 + math.exp(-1.0))
    assert abs(share - expected) < 4 * math.sqrt(expected * (1 - expected) / len(picks))


def test_a_choice_does_not_depend_on_the_prompts_before_it() -> None:
    user = SimulatedUser(shorter, noise=5.0, seed=1)
    shown = [answer("ab"), answer("abcd")]
    forward = {i: user.pick(prompt(i), shown) for i in range(50)}
    backward = {i: user.pick(prompt(i), shown) for i in reversed(range(50))}
    assert forward == backward


def test_nothing_to_choose_is_no_pick() -> None:
    user = SimulatedUser(shorter, noise=1.0, seed=0)
    assert user.pick(prompt(0), [answer("same "), answer("same")]) is None
    assert user.pick(prompt(0), [answer("ab"), answer("cd")]) is None


def test_a_pick_remembers_which_side_was_cut_off() -> None:
    user = SimulatedUser(shorter, noise=0.0, seed=0)
    pick = user.pick(prompt(0), [answer("abcd", FinishReason.LENGTH), answer("ab")])
    assert pick is not None and pick.chosen_finished and not pick.rejected_finished
