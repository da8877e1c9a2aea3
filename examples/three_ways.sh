#!/usr/bin/env bash
# One feedback log, three ways to learn from it: which one do its questions like best?
#
#   bash three_ways.sh LOG MODEL
#
# From the choices of LOG (any format that `raylign feedback build` reads) three models are made of MODEL, a Hugging Face
# folder: one imitates the chosen answers (SFT), one is moved towards them and away from the others (DPO), and one learns
# by PPO to please a reward model that has learned the choices. All of them, and MODEL, then answer questions that no
# training has seen. The reward model says which answer is better, so it is audited first, on choices it has not seen; PPO
# was trained to please it, and its lead is worth no more than the audit.
#
# Two suites say what PPO's model has forgotten of MODEL's knowledge and of ordinary text. A gate then decides whether it
# may go out: not worse on either, and taught by a reward model that agrees with people and pays for none of the changes
# that the audit tries. The exit code is the gate's: 0 it may, 1 it may not, 3 the data do not say.
#
# Run it in an empty folder. The sizes below suit SmolLM2-135M on two CPU cores: under 7 minutes for 110 short choices
# where nothing else runs. The pages are in loop/night-0001: eval.html, audit-reward-model.html, compare.html
# and gate.html. The same command after the log has grown makes the next night of it.
set -euo pipefail
log=$(realpath "$1") model=$(realpath "$2")

# What all trainings share: adapters in bfloat16 on two threads, for conversations of up to 384 tokens.
role="{precision: bfloat16, num_ranks: 1, threads_per_rank: 2, micro_batch_tokens: 1024, lora: {rank: 16}"
cat > small.yaml <<YAML
policy: $role, model: $model, optim: {schedule: linear}}
critic: $role}
reference: {precision: bfloat16, threads_per_rank: 2, micro_batch_tokens: 2048}
reward: {precision: bfloat16, threads_per_replica: 2, micro_batch_tokens: 2048}
data: {max_length: 384, max_prompt_tokens: 192}
cluster: {object_store_gb: 1.0}
YAML

cat > gate.yaml <<YAML
conditions:
  - {suite: facts, must: not_worse, by: 0.2}
  - {suite: text, must: not_worse, by: 0.1}
audits:
  - {audit: "{reward-model}", agreement: 0.65}
YAML

cat > loop.yaml <<YAML
logs: [$log]
start: $model
build: [split.by=prompt, split.eval=0.15, split.test=0]
train:
  - name: sft
    kind: pairs
    most: 128
    settings:
      [+experiment=sft_tiny_cpu, --config=small.yaml, "data.columns={completion: chosen}", num_steps=0, num_epochs=1,
       algorithm.rows_per_update=8, policy.optim.lr=2e-4]
  - name: dpo
    kind: pairs
    most: 128
    settings:
      [+experiment=dpo_tiny_cpu, --config=small.yaml, num_steps=0, num_epochs=1, algorithm.pairs_per_update=8,
       policy.optim.lr=5e-4]
  - name: reward-model
    kind: pairs
    most: 160
    settings:
      [+experiment=rm_tiny_cpu, --config=small.yaml, num_steps=0, num_epochs=1, algorithm.pairs_per_update=8,
       policy.optim.lr=4e-4, algorithm.centering_coef=0.02]
  - name: ppo
    settings:
      [+experiment=ppo_tiny_cpu, --config=small.yaml, num_steps=6, "data.train={build}/pairs/train.jsonl",
       "reward.model={reward-model}", algorithm.sequences_per_update=16, algorithm.kl_coef=0.1, policy.optim.lr=3e-4,
       critic.optim.lr=1e-4, rollout.num_workers=1, rollout.threads_per_worker=2, rollout.prompts_per_step=8,
       rollout.samples_per_prompt=4, rollout.temperature=0.8, rollout.max_model_len=320, rollout.max_new_tokens=96,
       rollout.kv_cache_gb=0.4, sync.max_canary_gap=0.5]
evaluate: [facts, text]
audit:
  - {model: reward-model, most: 40}
compare: {models: [current, sft, dpo, ppo], reward_model: reward-model, most: 24}
gate: gate.yaml
YAML
raylign loop --config loop.yaml
