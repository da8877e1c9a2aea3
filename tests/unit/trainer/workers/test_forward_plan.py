"""Who looks at what in a forward pass, and that every number comes back to its own token."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from raylign.data.types import FinishReason, RolloutMeta, SampleKey, TokenBatch, ValueEstimates
from raylign.trainer.workers.forward_plan import plan_group_passes, scatter_tokens, scatter_values

GROUPS = st.lists(st.lists(st.integers(2, 50), min_size=1, max_size=5), min_size=1, max_size=12)


def metas(lengths: list[int]) -> list[RolloutMeta]:
    return [RolloutMeta(SampleKey(0, "p", k), 1, n - 1, FinishReason.STOP, 1, 1, 1) for k, n in enumerate(lengths)]


@settings(deadline=None)
@given(GROUPS, st.integers(1, 4), st.integers(1, 120))
def test_every_group_is_seen_once_and_its_tokens_come_home(lengths: list[list[int]], ranks: int, budget: int) -> None:
    passes = plan_group_passes([metas(g) for g in lengths], num_ranks=ranks, micro_batch_tokens=budget)
    assert sorted(g for p in passes for g in p.groups) == list(range(len(lengths)))
    for share in passes:
        mine = [n for g in share.groups for n in lengths[g]]
        assert sorted(s for m in share.micro_batches for s in m) == list(range(len(mine)))
        prompts = [g for g in share.groups for _ in lengths[g]]  # a prompt of one token each, computed once
        for m in share.micro_batches:
            assert len(m) == 1 or sum(mine[s] - 1 for s in m) + len({prompts[s] for s in m}) <= budget
        ids = [[100 * g + k] * n for g in share.groups for k, n in enumerate(lengths[g])]
        tokens = TokenBatch.from_sequences(ids, [[True] * len(row) for row in ids])
        parts = [tokens.select(m) for m in share.micro_batches]
        sizes = [len(lengths[g]) for g in share.groups]
        back = scatter_tokens([p.input_ids.float() for p in parts], share.micro_batches, tokens, sizes)
        expected = [[float(100 * g + k) for k, n in enumerate(lengths[g]) for _ in range(n)] for g in share.groups]
        assert [b.tolist() for b in back] == expected
        first = [ValueEstimates(p.input_ids.float(), p.input_ids[p.cu_seqlens[:-1].long()].float()) for p in parts]
        values = scatter_values(first, share.micro_batches, tokens, sizes)
        assert [v.bootstrap.tolist() for v in values] == [
            [float(100 * g + k) for k in range(len(lengths[g]))] for g in share.groups
        ]


def test_ranks_share_the_tokens_not_the_groups() -> None:
    passes = plan_group_passes([metas([90]), metas([30]), metas([30]), metas([30])], num_ranks=2, micro_batch_tokens=90)
    assert [p.groups for p in passes] == [(0,), (1, 2, 3)]
    assert torch.tensor([len(p.micro_batches) for p in passes]).tolist() == [1, 1]
