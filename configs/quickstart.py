"""All seven stages on the built-in demo, in a few minutes.

  python -m edsft_jax.main --config=configs/quickstart.py \
      --workdir=runs/quickstart

Reproduces no published result: the pool is generated and the model is tiny. It
shows every stage and what the report looks like.
"""

import ml_collections

from edsft_jax import config


def get_config() -> ml_collections.ConfigDict:
  """Four strategies, three budgets, three seeds on the demo."""
  c = config.get_config()
  # Each seed has 650 prompts of its own.
  c.study.pool_fraction = 0.3
  c.study.budgets = (32, 64, 128)
  c.scoring.max_new_tokens = 16
  # Tuned for the random strategy, before any other strategy was run.
  c.finetuning.learning_rate = 4e-3
  c.evaluation.max_new_tokens = 16
  c.report.title = 'edsft_jax quickstart'
  return c
