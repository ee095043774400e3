"""The study of Arabelly et al. (EMNLP 2025), arXiv 2507.21482, on FLAN V2.

  python scripts/prepare_flan_v2.py FILE --folder=data
  python -m edsft_jax.main --config=configs/arabelly2025_flan.py \
      --workdir=runs/arabelly2025_flan

scripts/reproduce_arabelly2025.sh does the same stage by stage, the plan first.

Published: Llama 2 7B; FLAN V2, and Dolly (configs/arabelly2025_dolly.py); task
diversity, and task diversity weighted by inverse confidence, against random,
strategies of Bhatt et al. (2024) and determinantal point processes; MMLU, BBH
and AlpacaEval. Weighted task diversity is better than the full pool by 4% on
MMLU with up to 80% less annotation, and best on BBH with 30K answers.

Our choices, since only the abstract and summaries were available: the smaller
budgets; which earlier strategies to compare; LoRA; how the confidence of a task
is computed and how the picks of tasks are interleaved (edsft_jax/strategies);
the kernel of the determinants; clusters of the features as tasks for rows
without a label; and the rest as in configs/bhatt2024_flan.py, which also says
how to name a judge for AlpacaEval.

Not run at this size: hours and memory in scripts/reproduce_arabelly2025.sh are
counted. tests/test_papers.py runs every stage with a small model and a cut
pool.
"""

import ml_collections

from configs import bhatt2024_flan


def get_config() -> ml_collections.ConfigDict:
  """Six strategies, three budgets, three seeds."""
  c = bhatt2024_flan.get_config()
  c.selection.strategies = (
    'random',
    'min_margin',
    'facility_location',
    'log_determinant',
    'task_diversity',
    'weighted_task_diversity',
  )
  c.study.budgets = (7_500, 15_000, 30_000)
  # The paper claims results above the full pool's: compare over all seeds.
  c.study.full_pool_seeds = ()
  c.report.title = 'Arabelly et al. (2025): FLAN V2, Llama 2 7B'
  return c
