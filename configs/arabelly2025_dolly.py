"""The study of Arabelly et al. (EMNLP 2025), arXiv 2507.21482, on Dolly.

  python -m edsft_jax.main --config=configs/arabelly2025_dolly.py \
      --workdir=runs/arabelly2025_dolly

Like configs/arabelly2025_flan.py, which says what is published, with another
pool: databricks-dolly-15k.jsonl of databricks/databricks-dolly-15k on the hub
(CC BY-SA 3.0), whose eight categories are the tasks. The budgets are our
choice; the largest is a fifth of the pool, since the paper saves "up to 80%".
"""

import ml_collections

from configs import arabelly2025_flan


def get_config() -> ml_collections.ConfigDict:
  """Six strategies, three budgets, three seeds."""
  c = arabelly2025_flan.get_config()
  c.pool.path = 'data/databricks-dolly-15k.jsonl'
  c.study.budgets = (750, 1_500, 3_000)
  c.report.title = 'Arabelly et al. (2025): Dolly, Llama 2 7B'
  return c
