"""The study of Bhatt et al. (Findings of ACL 2024), arXiv 2401.06692.

  python scripts/prepare_flan_v2.py FILE --folder=data
  python -m edsft_jax.main --config=configs/bhatt2024_flan.py \
      --workdir=runs/bhatt2024

scripts/reproduce_bhatt2024.sh does the same stage by stage, the plan first.

Published: Llama 2 7B with LoRA; a pool of 99K prompts of FLAN V2; uncertainty
(the least margin, its mean, mean entropy, least confidence), k-center, and
facility location with a tuned RBF kernel, each against random; MMLU, BBH, and
answers judged by GPT-4. On generative tasks, half as many answers do as well as
random ones.

Our choices, since only the abstract and summaries were available: the budgets;
three seeds, each choosing from the whole pool, and one for the full pool;
the finetuning of configs/open_instruct.py, which is the nearest public recipe;
its protocols of MMLU (5 shots) and BBH (3 shots with reasoning); AlpacaEval for
the judged answers; greedy continuations of up to 64 tokens for the scores; the
mean of the last layer's hidden states over the prompt as features; the kernel's
width from the gains curves (selection.kernel_width); and k-center's first
prompt.

AlpacaEval's answers are only written, unless you name a judge with
--config.evaluation.alpaca_eval.judge=JUDGE.

Not run at this size: hours and memory in scripts/reproduce_bhatt2024.sh are
counted. tests/test_papers.py runs every stage with a small model and a cut
pool.
"""

import ml_collections

from configs import open_instruct


def get_config() -> ml_collections.ConfigDict:
  """Seven strategies, three budgets, three seeds."""
  c = open_instruct.get_config()
  c.pool.path = 'data/flan_v2_100k.jsonl'
  # Multiple-choice prompts list their answer, and worked examples may show it.
  c.pool.answer_in_prompt = 'keep'
  c.model.path = 'meta-llama/Llama-2-7b-hf'
  c.model.dtype = 'bfloat16_weights'
  # No strategy here reads the scores of prompts.
  c.scoring.prompt_scores = False
  c.selection.strategies = (
    'random',
    'min_margin',
    'mean_margin',
    'mean_entropy',
    'least_confidence',
    'k_center',
    'facility_location',
  )
  # Each is half of the next, since the paper saves half of the answers.
  c.study.budgets = (11_250, 22_500, 45_000)
  # This cell takes longest, and one run shows where the curves end.
  c.study.full_pool_seeds = (0,)
  c.finetuning.remat = 'layer'
  open_instruct.set_benchmarks(c)
  c.report.title = 'Bhatt et al. (2024): FLAN V2, Llama 2 7B'
  return c
