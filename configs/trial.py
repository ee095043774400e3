"""A trial on a few of your own prompts: minutes on two cores, not a result.

  python -m edsft_jax.main --config=configs/trial.py --workdir=DIR \
      --config.pool.path=prompts.jsonl --config.model.path=HF_DIR

It shows whether your files are read as you mean, what a report looks like, and
by `plan` how long a whole study would take. Its budgets and seeds are too small
to distinguish strategies.
"""

import ml_collections

from edsft_jax import config


def get_config() -> ml_collections.ConfigDict:
  """Three strategies on 120 prompts: twelve models of 8 or 16 answers."""
  c = config.get_config()
  c.pool.limit = 120
  c.scoring.prompt_scores = False
  c.scoring.max_new_tokens = 32
  c.selection.strategies = ('random', 'min_margin', 'facility_location')
  c.study.budgets = (8, 16)
  c.study.seeds = (0, 1)
  c.study.full_pool = False
  c.finetuning.epochs = 1
  c.finetuning.max_length = 256
  c.evaluation.max_new_tokens = 32
  return c
