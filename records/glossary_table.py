"""The metric glossary's entries, and nothing else (see records/glossary.py for how they are looked up)."""

from __future__ import annotations

from raylign.records.glossary_entry import Goal, MetricHelp

_REWARD = (
    MetricHelp(
        "reward/mean", "Reward", "score",
        "Mean score of this step's answers, by the reward model and rules the policy is trained on.",
        "Flat: check that answers of one prompt differ (reward/std) and raise policy.optim.lr. Rising while the gold "
        "score falls: the policy exploits the reward; raise the KL coefficient.",
        goal=Goal.UP,
    ),
    MetricHelp(
        "reward/std", "Reward spread", "score", "Standard deviation of this step's scores.",
        "Near 0 there is nothing to learn from: raise rollout.temperature or choose harder prompts.", low=0.01,
    ),
    MetricHelp(
        "reward/failed", "Failed rewards", "samples",
        "Samples whose reward could not be had. They are left out of training and of every mean, never counted as 0.",
        "Look at reward_failure in the samples file; past reward.max_failed_fraction the run ends.", high=0,
        goal=Goal.DOWN,
    ),
    MetricHelp("reward/replicas", "Reward replicas", "replicas", "Replicas that scored this step."),
    MetricHelp(
        "reward/unreadable", "Unreadable judgements", "samples",
        "Of the failed rewards, those for which a judge replied and no score could be read from what it said.",
        "Read the replies in the run's folder judged/, and ask in the rubric for a last line `Score: N`.", high=0,
        goal=Goal.DOWN,
    ),
    MetricHelp(
        "reward/zero_variance_groups", "Groups without contrast", "groups",
        "Prompts whose samples all have the same score; a group baseline learns nothing from them.",
        "Many: use more samples a prompt, a finer reward or prompts of another difficulty.", goal=Goal.DOWN,
    ),
    MetricHelp(
        "reward/single_sample_groups", "Groups of one", "groups",
        "Prompts left with a single scored sample; a group baseline gives it no advantage.",
        "Many: rewards fail; see reward/failed.", goal=Goal.DOWN,
    ),
    MetricHelp(
        "reward/<component>", "Reward part", "score", "Mean of one part of the reward, before weights and shaping.",
        "One part rising while the others fall: look at the weights in reward.rules.",
    ),
    *(
        MetricHelp(
            f"reward/<code>/{verdict}", f"Code: {label}", "fraction", f"Share of answers whose code {what}.", advice,
            goal=Goal.UP if verdict == "passed" else Goal.DOWN,
        )
        for verdict, label, what, advice in (
            ("passed", "passed", "passed all tests of its row", "Near 0: nothing to learn from; take easier rows."),
            ("wrong", "wrong", "ran, and failed a test", ""),
            ("error", "error", "raised, is no Python, or is missing", "Rising: do answers still hold code?"),
            ("output", "too much output", "wrote more than output_kb", ""),
            ("crash", "crashed", "was ended by a signal", ""),
            ("memory", "out of memory", "asked for more than memory_mb", "Good answers among them: raise memory_mb."),
            ("timeout", "timed out", "took longer than cpu_s or timeout_s",
             "Many on a busy machine: raise timeout_s. A sandbox that failed is counted in reward/failed alone."),
        )
    ),
)  # fmt: skip

_POLICY = (
    MetricHelp(
        "policy/loss", "Policy loss", "loss", "The clipped policy objective. Near 0 by construction.",
        "Only a jump or a non-finite value matters: then lower policy.optim.lr.",
    ),
    MetricHelp(
        "policy/kl", "KL to the reference", "nats a sequence",
        "How far the policy has moved from the reference, on the step's own samples; both log-probs are the trainer's, "
        "never the engine's. Exactly 0 before the first update where reference.model and reference.precision are the "
        "policy's.",
        "Above the range language suffers: raise the KL coefficient or lower policy.optim.lr. Not 0 at the start: the "
        "reference is another model, or computes in another precision.", high=8.0,
    ),
    MetricHelp(
        "policy/kl_square", "KL, mean square", "nats²",
        "Mean over sequences of the square of what policy/kl is the mean of: with their number, how exact that is.",
        "Before the first update it is the rounding of two passes; the report holds policy/kl to it.",
    ),
    MetricHelp(
        "policy/approx_kl", "KL of one update", "nats a token",
        "How far this step's update moved the policy from the one that sampled.",
        "Above the range: lower policy.optim.lr or take fewer passes over a step.", high=0.05,
    ),
    MetricHelp(
        "policy/kl_coef", "KL coefficient", "", "Weight of the KL term; only the adaptive controller moves it.",
        "Running away: the KL target cannot be met at this learning rate.",
    ),
    MetricHelp(
        "policy/entropy", "Entropy", "nats a token", "How open the policy's choices are at the sampling temperature.",
        "Falling to 0: answers become all alike; raise the KL coefficient or add an entropy bonus. Rising without end: "
        "language is dissolving; lower policy.optim.lr.", low=0.1, high=6.0,
    ),
    MetricHelp(
        "policy/clip_fraction", "Clipped share", "share of tokens",
        "Tokens whose probability ratio left the clip range, so that they stopped teaching.",
        "Above the range: the update is too large; lower policy.optim.lr.", high=0.3,
    ),
    MetricHelp(
        "policy/grad_norm", "Gradient norm", "", "Global norm of the policy's gradient before clipping.",
        "Spikes: lower the learning rate; far above policy.optim.max_grad_norm all the time: every step is clipped.",
        low=1e-6, high=100.0,
    ),
    MetricHelp("policy/ratio", "Probability ratio", "ratio", "Mean of new over old token probability.",
               "Far from 1: the update is too large; lower policy.optim.lr.", low=0.8, high=1.2),
    MetricHelp("policy/kl_loss", "KL in the loss", "nats a token", "The KL term of the loss, before its coefficient."),
    MetricHelp("policy/lr", "Learning rate", "", "The policy's learning rate in this step."),
    MetricHelp(
        "policy/importance_masked", "Left out for their age", "share of tokens",
        "Tokens whose importance weight is 0 because it was outside algorithm.importance_floor and importance_cap.",
        "Above the range: samples are too old or engine and trainer disagree; lower rollout.max_staleness.", high=0.2,
    ),
    MetricHelp(
        "policy/importance_weight", "Importance weight", "ratio",
        "Mean weight that corrects for the engine's own log-probs (1: engine and trainer agree).",
        "Far from 1: see rollout/logprob_gap.", low=0.8, high=1.2,
    ),
    MetricHelp(
        "policy/tokens", "Policy's tokens", "tokens",
        "Prompt and answer tokens the policy's update went through, every pass counted.",
    ),
    MetricHelp(
        "policy/seconds", "Policy update", "s", "Seconds of the policy's update, by its first rank.",
    ),
    MetricHelp(
        "critic/loss", "Critic loss", "loss", "Clipped squared error of the value estimates.",
        "Not falling: raise critic.optim.lr or start the critic from the reward model.", goal=Goal.DOWN,
    ),
    MetricHelp(
        "critic/explained_variance", "Explained variance", "share",
        "How much of the returns' variance the critic foresees: 1 all, 0 nothing, below 0 worse than a constant.",
        "Below 0 after the first steps: the critic harms; raise critic.optim.lr or warm it up.", low=0.0, high=1.0,
        goal=Goal.UP,
    ),
    MetricHelp(
        "critic/clip_fraction", "Critic's clipped share", "share of tokens", "Values whose update was clipped.",
        "Above the range: lower critic.optim.lr.", high=0.3,
    ),
    MetricHelp(
        "critic/grad_norm", "Critic's gradient norm", "", "Global norm of the critic's gradient before clipping.",
        "Spikes: lower critic.optim.lr.", low=1e-6, high=1000.0,
    ),
    MetricHelp("critic/error", "Critic's error", "score", "Mean distance between value estimates and returns.",
               "Not falling: as critic/loss.", goal=Goal.DOWN),
    MetricHelp("critic/return_mean", "Return", "score", "Mean return of a token: what the critic should foresee."),
    MetricHelp("critic/return_std", "Return spread", "score", "Standard deviation of the returns."),
    MetricHelp("critic/value_mean", "Value", "score", "Mean value estimate; it should follow critic/return_mean."),
    MetricHelp("critic/lr", "Critic's learning rate", "", "The critic's learning rate in this step."),
    MetricHelp("critic/tokens", "Critic's tokens", "tokens", "As policy/tokens, of the critic's update."),
    MetricHelp("critic/seconds", "Critic update", "s", "As policy/seconds, of the critic's update."),
)  # fmt: skip

_ROLLOUT = (
    MetricHelp(
        "rollout/response_length", "Response length", "tokens", "Mean tokens of an answer, end token included.",
        "A steady climb or a fall to a few tokens is usually the reward being gamed: read the samples.", low=2,
    ),
    MetricHelp(
        "rollout/truncated_ratio", "Truncated", "share of answers", "Answers cut by rollout.max_new_tokens.",
        "Above the range: raise rollout.max_new_tokens or penalise with reward.truncation_penalty.", high=0.3,
        goal=Goal.DOWN,
    ),
    MetricHelp(
        "rollout/repetition", "Repetition", "share of four-token runs",
        "Four tokens in a row that the same answer has had before; mean over answers.",
        "Above the range answers go round in circles: read the samples; lower policy.optim.lr, or raise the KL "
        "coefficient.", high=0.5, goal=Goal.DOWN,
    ),
    MetricHelp("rollout/turns", "Turns", "turns", "Turns of the model in one episode, mean.",
               "Steady at environment.max_turns: episodes are cut; raise it, or look at the samples' turns."),
    MetricHelp("rollout/environment_tokens", "Tokens of the environment", "tokens",
               "Tokens that the environment wrote into one response, mean. They are read and never trained.",
               "When they fill rollout.max_new_tokens, episodes are cut: give shorter observations, or raise it."),
    MetricHelp("rollout/environment_failed", "Failed environments", "episodes",
               "Episodes whose environment raised, hung or was lost. They leave the step and their group's baseline.",
               "Look at reward_failure in the samples file.", high=0, goal=Goal.DOWN),
    MetricHelp("rollout/environment_restarts", "Restarts of environments", "processes",
               "Processes of an environment of your own that were started again since the version before, in all.",
               "The engines' logs say why. Past environment.max_restarts in a row, episodes fail by name.",
               high=0, goal=Goal.DOWN),
    MetricHelp(
        "rollout/logprob_gap", "Engine and trainer differ by", "nats",
        "Mean difference between the engine's log-prob of a sampled token and the trainer's; 0 when the trainer does "
        "not compute its own.",
        "Above the range the engine does not serve what is trained, or precision is too low: see sync/canary_gap.",
        high=0.02, goal=Goal.DOWN,
    ),
    MetricHelp(
        "rollout/logprob_gap_max", "Largest difference", "nats",
        "Largest difference between the engine's log-prob of a sampled token and the trainer's.",
        "As rollout/logprob_gap; a few large ones on rare tokens are rounding in bfloat16.", high=0.5, goal=Goal.DOWN,
    ),
    MetricHelp(
        "rollout/tokens_per_s", "Generation speed", "tokens/s", "Tokens sampled a second by all rollout workers.",
        "Low: raise rollout.max_concurrent or rollout.num_workers.", goal=Goal.UP,
    ),
    MetricHelp(
        "rollout/staleness_max", "Oldest sample", "versions",
        "Most weight versions between sampling and training of a sample of this step.",
        "At most rollout.max_staleness. When training suffers: lower it, or see policy/importance_masked.",
    ),
    MetricHelp(
        "rollout/staleness", "Age of samples", "versions",
        "Weight versions between the sampling of a token and its training, mean over the step's tokens.",
    ),
    MetricHelp(
        "rollout/mixed_versions", "Responses of two versions", "share of answers",
        "Responses that a weight publication interrupted and that newer weights finished (rollout.in_flight=resume).",
    ),
    MetricHelp(
        "rollout/steps_ready", "Steps waiting", "steps",
        "Finished steps of rollouts that wait for the training.",
        "Always rollout.max_staleness: training is the bottleneck. Always 0: generation is.",
    ),
    MetricHelp(
        "rollout/filtered", "Samples without contrast", "samples",
        "Samples of this step that were replaced because all rewards of their prompt were equal.",
        "Many: the prompts are too easy or too hard; each costs a generation.", goal=Goal.DOWN,
    ),
    MetricHelp("rollout/workers", "Rollout workers", "workers", "Workers that served this step.",
               "Falling: a worker died; the run continues with the rest. See logs/."),
    MetricHelp("rollout/wanted", "Rollout workers wanted", "workers", "By the settings, `raylign scale` or "
               "rollout.autoscale.", "Above rollout/workers for long: the cluster has no room, or starts fail; see "
               "logs/."),
    MetricHelp(
        "rollout/idle_share", "Engines without work", "share",
        "Share of the rollout workers' time, in this step, without a prompt to answer.",
        "High: fewer workers do (rollout.autoscale), or let generation run ahead (rollout.max_staleness).",
    ),
    MetricHelp(
        "engine/kv_cache_peak", "Cache in use, peak", "share of blocks",
        "Largest share of its KV cache's blocks that an engine's requests held since the version before; of the "
        "fullest engine.",
        "Far below 1 at all times: raise rollout.max_concurrent, or give the memory to others. At 1: see "
        "engine/preemptions.", low=0.0, high=1.0,
    ),
    MetricHelp(
        "engine/preemptions", "Preemptions", "requests",
        "Requests that all engines had to drop and compute again since the version before, for want of cache. With "
        "rollout.in_flight=resume those that a publication paused count too.",
        "Above 0 tokens are computed twice: raise rollout.kv_cache_gb (on a whole GPU "
        "rollout.gpu_memory_utilization), or lower rollout.max_concurrent.", goal=Goal.DOWN,
    ),
    MetricHelp("engine/<engine>/kv_cache_peak", "Cache in use, peak", "share of blocks",
               "As engine/kv_cache_peak, of one engine by its number.", low=0.0, high=1.0),
    MetricHelp("engine/<engine>/preemptions", "Preemptions", "requests",
               "As engine/preemptions, of one engine by its number.", goal=Goal.DOWN),
    MetricHelp("sync/seconds", "Weight publication", "s", "Time from the end of the update until every engine serves "
               "the new weights.", "Long: raise sync.bucket_mb.", goal=Goal.DOWN),
    MetricHelp("sync/bytes", "Weights sent", "bytes", "Size of the published weights."),
    MetricHelp(
        "sync/verified", "Engines verified", "workers",
        "Engines whose served weights matched the learner's, tensor by tensor, after this publication.",
        "Below rollout/workers an engine would be serving other weights; it is taken out.", low=1,
    ),
    MetricHelp(
        "sync/canary_gap", "Canary gap", "nats",
        "Mean distance, over sync.canary_prompts of fixed random tokens at temperature 1, of an engine's log-probs "
        "(rollout.precision) and the learner's (policy.precision) after a publication; of the worst engine.",
        "Past sync/canary_limit the engine does not serve.", high=0.05, goal=Goal.DOWN,
    ),
    MetricHelp(
        "sync/canary_limit", "Canary limit", "nats",
        "The largest canary gap with which an engine serves: sync.max_canary_gap, or three times what the first "
        "publication measured.", "Set sync.max_canary_gap for another.",
    ),
)  # fmt: skip

_TRAIN = (
    MetricHelp("train/loss", "Loss", "loss", "The training objective.", "Rising or flat: lower or raise the learning "
               "rate; check the masks.", goal=Goal.DOWN),
    MetricHelp("train/entropy", "Entropy", "nats a token", "How open the model's next-token choices are.",
               "Falling to 0: the model memorises; train less.", low=0.1, high=6.0),
    MetricHelp("train/mean_token_accuracy", "Token accuracy", "share", "Trained tokens the model would choose first.",
               "Near 1: memorised.", low=0.0, high=1.0, goal=Goal.UP),
    MetricHelp("train/grad_norm", "Gradient norm", "", "Global norm of the gradient before clipping.",
               "Spikes: lower the learning rate.", low=1e-6, high=100.0),
    MetricHelp("train/learning_rate", "Learning rate", "", "The learning rate in this step."),
    MetricHelp("train/num_tokens", "Tokens seen", "tokens", "Tokens trained on so far."),
    MetricHelp("train/global_step", "Step", "steps", "The step, as Weights & Biases' x axis."),
    MetricHelp("train/epoch", "Epoch", "passes", "Passes over the data so far."),
    MetricHelp("train/accuracy", "Accuracy", "share of pairs", "Pairs whose chosen side scores higher.",
               "Near 0.5 the reward model has learned nothing; at 1.0 on little data it has memorised.", low=0.5,
               high=1.0, goal=Goal.UP),
    MetricHelp("train/margin", "Margin", "score", "Mean score of chosen minus rejected.",
               "Below 0 the preference is learned backwards: check chosen and rejected.", low=0.0, goal=Goal.UP),
    MetricHelp("train/mean_reward", "Mean score", "score", "Mean score over chosen and rejected.",
               "Drifting far from 0: turn on centring."),
    MetricHelp("train/rewards/chosen", "Reward, chosen", "score", "Reward of chosen answers: a reward model's score; "
               "for DPO and KTO how far the policy rose against the reference.", goal=Goal.UP),
    MetricHelp("train/rewards/rejected", "Reward, rejected", "score", "The same of rejected answers.", goal=Goal.DOWN),
    MetricHelp("train/rewards/margins", "Implicit margin", "score", "Implicit reward of chosen minus rejected.",
               "Below 0: check chosen and rejected.", low=0.0, goal=Goal.UP),
    MetricHelp("train/rewards/accuracies", "Implicit accuracy", "share of pairs", "Pairs whose chosen side has the "
               "higher implicit reward.", "Near 0.5: nothing learned.", low=0.5, high=1.0, goal=Goal.UP),
    MetricHelp("train/logps/chosen", "Log-prob, chosen", "nats", "Log-prob of chosen answers under the policy.",
               "Falling fast: the policy forgets good answers too; raise beta."),
    MetricHelp("train/kl", "KL estimate", "nats an answer", "KTO's reference point: how much likelier than under the "
               "reference the policy finds answers to other prompts, cut off at 0.", "Rising without end: raise beta."),
    MetricHelp("train/nll_loss", "Next-token loss, chosen", "nats a token", "Negative log-likelihood of the chosen "
               "answers, where it is a part of the objective.", goal=Goal.DOWN),
    MetricHelp("train/log_odds_ratio", "Log sigmoid of the odds gap", "nats", "ORPO's preference term before its "
               "weight.", goal=Goal.UP),
    MetricHelp("train/log_odds_chosen", "Odds gap", "nats", "Log odds of chosen minus rejected answers (ORPO).",
               "Below 0: check chosen and rejected.", goal=Goal.UP),
    MetricHelp("train/tokens", "Step's tokens", "tokens", "Tokens the step's update went through, all ranks."),
    MetricHelp("train/seconds", "Update", "s", "Seconds of the update, by its first rank."),
    MetricHelp("train/logps/rejected", "Log-prob, rejected", "nats", "Log-prob of rejected answers under the policy."),
)  # fmt: skip

_REST = (
    MetricHelp("time/step", "Step", "s", "Wall time of the whole step.", "See the phases below.", goal=Goal.DOWN),
    MetricHelp("time/<phase>", "Time", "s", "Wall time of one phase. Phases that run side by side overlap.",
               "The longest is where to look first.", goal=Goal.DOWN),
    MetricHelp("perf/tokens_per_s", "Training speed", "tokens/s", "Tokens trained a second of step time.",
               "Low: raise micro_batch_tokens.", goal=Goal.UP),
    *(
        entry
        for role in ("policy", "critic", "train")
        for entry in (
            MetricHelp(f"{role}/mfu", "Hardware use", "share",
                       "Arithmetic of the update (6 a parameter and token, 4 with adapters) over the GPUs' peak.",
                       "Low: raise micro_batch_tokens.", low=0.0, high=1.0, goal=Goal.UP),
            MetricHelp(f"{role}/tokens_per_s_per_gpu", "Tokens a GPU", "tokens/s",
                       "Tokens of the update a second and GPU.", goal=Goal.UP),
            MetricHelp(f"{role}/memory_peak_gb", "Memory, peak", "GB",
                       "Most GPU memory the first rank held since the last update.",
                       "Near the card's: lower micro_batch_tokens; `raylign plan` says what is what."),
        )
    ),
    MetricHelp("card/<node>/<card>/utilization", "Card busy", "share",
               "Share of the time since the last step's line in which a kernel ran on a card, by node address and the "
               "card's number there; on GPUs only.",
               "Low on an engine's card: see rollout/idle_share; on a learner's: see time/<phase>.", low=0.0, high=1.0,
               goal=Goal.UP),
    MetricHelp("card/<node>/<card>/memory_gb", "Card's memory", "GB",
               "Most memory in use on a card, by all processes together, since the last step's line.",
               "Near the card's own: policy/memory_peak_gb is the first rank's share of it."),
    MetricHelp("card/<node>/<card>/temperature_c", "Card's temperature", "degrees Celsius",
               "Highest temperature of a card since the last step's line.",
               "Above the range a card lowers its clock: look at the node's cooling.", high=85.0),
    MetricHelp("card/<node>/<card>/power_w", "Card's power", "W", "Mean power of a card since the last step's line."),
    MetricHelp("perf/mfu", "Hardware use", "share", "Model arithmetic done, as a share of what the hardware can do.",
               "", low=0.0, high=1.0, goal=Goal.UP),
    MetricHelp("eval/<set>/gold_score", "Gold score", "score",
               "The true taste, which the learned reward only estimates. Never trained on.",
               "Falling while the reward rises: the reward is being gamed; raise the KL coefficient.", goal=Goal.UP),
    MetricHelp("eval/<set>/reward", "Held-out reward", "score", "Learned reward on held-out prompts.",
               "Falling while reward/mean rises: the policy overfits its prompts.", goal=Goal.UP),
    MetricHelp("eval/<set>/fluency", "Fluency", "nats a token",
               "Mean log-prob a token of held-out answers under the untouched start model, end token left out.",
               "More than 0.3 below its start: the language is going; raise the KL coefficient.", goal=Goal.UP),
    MetricHelp("eval/<set>/loss", "Loss", "loss", "The training objective on rows that are not trained on.",
               "Rising while the training loss falls: the rows are learned by heart; stop earlier.", goal=Goal.DOWN),
    MetricHelp("eval/<set>/accuracy", "Accuracy", "share",
               "Share of held-out pairs whose chosen answer gets the higher score; 0.5 is chance.", "", goal=Goal.UP),
    MetricHelp("eval/<set>/margin", "Margin", "score",
               "How much higher the chosen answer of a held-out pair is scored, on average.", "", goal=Goal.UP),
    MetricHelp("eval/<set>/pass@<k>", "Solved within k", "share",
               "Chance that at least one of k answers is right, estimated without bias from evaluation.samples draws.",
               "Flat pass@1 with rising pass@k: the right answer is there but seldom; falling pass@k: less variety."),
    MetricHelp("eval/<set>/metrics_failed", "Own metrics without a value", "metrics",
               "Of evaluation.metrics, those that raised, hung or gave no number; the log names each and why.",
               high=0),
    MetricHelp("eval/<set>/<metric>", "Held out", "", "A figure of a held-out set."),
    MetricHelp("eval/<set>/<group>/<metric>", "Held out", "",
               "The same figure as under train/, of a held-out set; or a part of one of evaluation.metrics."),
    MetricHelp("ledger/non_finite_metrics", "Numbers that were not finite", "values",
               "Values of this step that were NaN or infinite; they stand as null.",
               "Find the null in metrics.jsonl: the loss or reward of that step is broken.", high=0, goal=Goal.DOWN),
    MetricHelp("ledger/<outcome>", "Ledger", "samples",
               "Samples so far with this outcome; over all outcomes each issued sample is counted once."),
    MetricHelp("distil/divergence", "Divergence from the teacher", "nats a token",
               "Estimated divergence (algorithm.beta) between policy and teacher, mean over answer tokens.",
               "Flat from the start: raise policy.optim.lr, or the teacher cannot tell them apart.", goal=Goal.DOWN),
    MetricHelp("distil/teacher_logprob", "Teacher's log-prob", "nats a token",
               "Mean log-prob that the teacher gives the policy's tokens.", goal=Goal.UP),
    MetricHelp("data/share/<source>", "Share of a source", "share of draws",
               "Of the step's drawn prompts, those with this data_source; over a run its share in data.mix."),
    MetricHelp("curriculum/unsolved", "Drawn and never solved", "share of draws",
               "Drawn prompts of which no answer had a reward of data.curriculum.solved_score.",
               "Most of them: the prompts are too hard; warm up by SFT, or add easier ones."),
    MetricHelp("curriculum/mixed", "Drawn and sometimes solved", "share of draws",
               "Drawn prompts of which some answers were solved: those that teach a group baseline something.",
               "Falling: lower data.curriculum.min_weight, so such prompts are drawn more often.", goal=Goal.UP),
    MetricHelp("curriculum/solved", "Drawn and always solved", "share of draws",
               "Drawn prompts of which every answer was solved; most of them: add harder ones."),
    MetricHelp("curriculum/first_draws", "Drawn for the first time", "share of draws",
               "Drawn prompts that were not drawn before in this run."),
    MetricHelp("curriculum/most_draws", "Most draws of one", "draws",
               "How often the step's most drawn prompt has been drawn by now; at most data.curriculum.max_draws."),
    MetricHelp("data/masks_checked", "Masks checked", "sequences",
               "Sequences so far whose training mask was checked to train some tokens and not all."),
)  # fmt: skip

ENTRIES: tuple[MetricHelp, ...] = (*_REWARD, *_POLICY, *_ROLLOUT, *_TRAIN, *_REST)
