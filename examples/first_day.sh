#!/usr/bin/env bash
# A first day on a Ray cluster that already runs: your questions, your reward, your settings; stop, go on, ask the result.
#
#   export RAY_API_SERVER_ADDRESS=http://HEAD:8265     where it has a token also: RAY_AUTH_MODE=token, RAY_AUTH_TOKEN_PATH
#   bash first_day.sh MODEL SHARED
#
# Run it in an empty folder. MODEL is a Hugging Face model folder and SHARED a folder for the runs; both lie on a disk that
# all machines of the cluster share. This machine needs the disk too, for all but plan, submit and stop.
set -euo pipefail
model=$1 shared=$2 run=$2/runs/first-day

# Your data: any columns.
{
  echo "question,length"
  for n in $(seq 32); do echo "Say something about the number $n.,$((20 + n))"; done
} > questions.csv

# Your code: a reward function, and what is to be asked after every step.
cat > mine.py <<'PYTHON'
def close_to_wish(prompts, completions, length, **columns):
    """1 for an answer of `length` characters, which is a column of the data; 0 for none and for twice as many."""
    return [max(0.0, 1 - abs(len(text) - int(wish)) / int(wish)) for text, wish in zip(map(answer, completions), length)]


def answer(completion):
    """Plain text, or the words of a conversation's answer."""
    return completion if isinstance(completion, str) else completion[0]["content"]


def good_enough(step):
    """True saves and stops the run."""
    return step.metrics.get("reward/mean", 0) > 0.95
PYTHON

# Your settings: an experiment built on a shipped one, and a file for the place where it runs.
mkdir -p settings/experiment
cat > settings/experiment/lengths.yaml <<'YAML'
defaults: [grpo_tiny_cpu]
num_steps: 500
data: {train: questions.csv, columns: {prompt: question}}
reward: {functions: [{path: "mine.py:close_to_wish"}]}
callbacks: ["mine.py:good_enough"]
YAML
cat > place.yaml <<YAML
name: first-day
run_root: $shared/runs
policy: {model: $model}
YAML
settings=(--config-dir settings --config place.yaml +experiment=lengths)

# What would it do? Then send it; this folder goes along.
raylign plan "${settings[@]}" > plan.txt
raylign submit --no-wait "${settings[@]}" | tee job.txt
job=$(sed -n 's/^job \(.*\) is submitted$/\1/p' job.txt)

# Look on until step 2 is done, then stop it: it finishes its step and saves.
raylign watch "$run" --wait 300 --until 2
ray job stop "$job"

# The same command goes on where it stopped; here for three steps more.
steps=$(wc -l < "$run/metrics.jsonl")
raylign submit "${settings[@]}" num_steps=$((steps + 3))

# What came of it, and what does it say?
raylign watch "$run" --once
raylign report "$run"
raylign chat "$run" "Say something about the number 7." --max-new-tokens 24
