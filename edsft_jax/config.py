"""Every option with its default, unit and meaning; experiments override them.

A config is a Python file whose get_config() changes what this one returns.
Each option can be set on the command line too, as
--config.pool.path=prompts.jsonl. Optional scalars use '' or 0.0, never None;
sequences are tuples: --config.study.budgets='(50,100)'.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
  """Returns the locked config that every experiment starts from."""
  c = ml_collections.ConfigDict()

  c.pool = ml_collections.ConfigDict()
  # A file of prompts, a folder of such files, or a pattern with *;
  # 'hf:NAME/SPLIT', a dataset that the package `datasets` can load;
  # 'tfds:NAME/SPLIT', one prepared as array_record in TFDS_DATA_DIR; or 'demo'
  # for the built-in generated pool.
  c.pool.path = 'demo'
  # 'auto' (by the file extension) | 'jsonl' | 'json' | 'csv' (separated by
  # commas, semicolons or tabs) | 'parquet' | 'arrow' | 'xlsx'.
  c.pool.format = 'auto'
  # Column names; '' detects the usual ones (see edsft_jax/pool/columns.py),
  # 'none' uses no column for this.
  c.pool.id_column = ''
  c.pool.prompt_column = ''
  # Text to put after the prompt's text, and text to put before it.
  c.pool.context_column = ''
  c.pool.system_column = ''
  c.pool.task_column = ''
  c.pool.response_column = ''
  # Read at most this many rows from the start of the file; 0: all.
  c.pool.limit = 0
  # True: fail on a row that would otherwise be quarantined, or merged with a
  # row that has other text in some column.
  c.pool.strict = False
  # What to do if most prompts contain their own response: 'refuse' the pool, or
  # 'keep' it if that is intended, as for a copying task.
  c.pool.answer_in_prompt = 'refuse'
  # A file of ids to leave out of the pool: a table with a column id, or text
  # with one id per line; '' leaves out none.
  c.pool.exclude = ''
  # True: pool.path may have new rows. They are appended to the pool and scored;
  # prompts that were already asked for or answered stay chosen, budgets stay
  # totals, and the held-out set does not change. Old rows may not change.
  c.pool.append = False
  # Prompts with reference responses to evaluate on: like pool.path ...
  c.pool.heldout_path = ''
  # ... or, without such a file, this share of the pool's answered prompts,
  # split off before scoring and never selected; 0.0: the whole file is the
  # pool.
  c.pool.heldout_fraction = 0.1

  c.model = ml_collections.ConfigDict()
  # A Hugging Face model directory, a model's name on the hub ('owner/model'),
  # or 'demo' for the small built-in one.
  c.model.path = 'demo'
  # Of weights and activations: 'float32' | 'bfloat16' | 'float16'; or
  # 'bfloat16_weights', which has float32 activations and is what to use on an
  # accelerator. No platform changes it silently.
  c.model.dtype = 'float32'

  c.mesh = ml_collections.ConfigDict()
  # Devices along each mesh axis, over all processes; one axis may be -1 for
  # whatever is left.
  c.mesh.data = -1
  c.mesh.fsdp = 1
  c.mesh.tensor = 1

  c.prompt = ml_collections.ConfigDict()
  # 'auto' (the checkpoint's chat template, else raw) | 'raw' | Jinja text.
  c.prompt.template = 'auto'
  # Where a prompt too long for the context is cut: 'end' | 'start' | 'middle'.
  c.prompt.truncate = 'end'
  # Text between prompt and response, without a chat template.
  c.prompt.separator = '\n'
  # Variables for the chat template, a JSON object such as
  # '{"enable_thinking": false}'.
  c.prompt.template_arguments = '{}'
  # What control tokens in the text of prompts and answers, such as
  # '<|im_end|>', are encoded as: 'text' | 'special', the token itself.
  c.prompt.control_tokens = 'text'
  # The date that chat templates take as today's, as YYYY-MM-DD.
  c.prompt.date = '2024-07-26'

  c.scoring = ml_collections.ConfigDict()
  # False: only read the prompts, for features and prompt_* scores. Then
  # confidence_prompts_per_task alone decides which prompts are continued.
  c.scoring.generate = True
  # Also score the prompt's own tokens (prompt_*). This needs logits over the
  # vocabulary for each token: half of the time to read a prompt with a small
  # model.
  c.scoring.prompt_scores = True
  # Estimate a task's confidence from this many of its prompts, drawn at
  # random; 0: from all.
  c.scoring.confidence_prompts_per_task = 0
  # Tokens of greedy continuation per prompt; the end token counts as one.
  c.scoring.max_new_tokens = 64
  # Token ids that end a continuation besides the model's own.
  c.scoring.stop_token_ids = ()
  # Prompt and new tokens per batch, padding included; lower it to save memory.
  c.scoring.batch_tokens = 32768
  # Prompts per shard. An interrupted run resumes after its last complete shard,
  # and processes split the pool by whole shards.
  c.scoring.shard_prompts = 1024
  # Divide least_confidence by the number of generated tokens.
  c.scoring.length_normalized = False
  c.scoring.features = ml_collections.ConfigDict()
  # 'mean' | 'last' | 'weighted' (by position: later tokens count more).
  c.scoring.features.pooling = 'mean'
  # 0 is the embedding, -1 the last layer after the final norm.
  c.scoring.features.layer = -1

  c.selection = ml_collections.ConfigDict()
  # Strategies by name; the table is in README.md.
  c.selection.strategies = (
    'random',
    'min_margin',
    'facility_location',
    'weighted_task_diversity',
  )
  c.selection.kernel = ml_collections.ConfigDict()
  # 'rbf' | 'cosine'.
  c.selection.kernel.similarity = 'rbf'
  # RBF width in units of the pool's mean squared distance; 0.0: read off the
  # gains curves, see selection.kernel_width.
  c.selection.kernel.width = 0.0
  # The gamma of exp(-gamma d^2), instead of a width; 0.0: unused.
  c.selection.kernel.gamma = 0.0
  # How cosine becomes non-negative: 'shift' | 'clip'.
  c.selection.kernel.transform = 'shift'
  # First centre of k_center: 'zero' (pool index 0) | 'random' | 'medoid'.
  c.selection.k_center_first = 'zero'
  # Number of tasks to find by k-means on the features, if a strategy needs
  # tasks and the pool has no task column; 0: the square root of half the pool,
  # at most 100.
  c.selection.task_clusters = 0
  # The score averaged into a task's confidence: 'mean_confidence' |
  # 'first_token_confidence' | 'min_confidence' | 'sequence_probability' (of the
  # whole continuation).
  c.selection.task_confidence = 'mean_confidence'
  # The strategy whose picks random_length_matched has the lengths of, in
  # characters. It shows how much of that strategy's effect is their length.
  c.selection.length_matched_to = 'facility_location'
  # GiB that one selection may use besides the features; 0.0: a fraction of the
  # free memory, on a host at most 2.5.
  c.selection.memory_limit = 0.0

  c.study = ml_collections.ConfigDict()
  # Numbers of answers to buy; one finetuning run per strategy, budget and seed.
  c.study.budgets = (100, 200, 400)
  # Seed s sets selection randomness, initialisation and data order.
  c.study.seeds = (0, 1, 2)
  # Seeds of random, the baseline of every comparison; (): study.seeds.
  c.study.random_seeds = ()
  # The part of the pool that each seed chooses from, the same for all
  # strategies of a seed; parts are disjoint. 1.0: the whole pool for every
  # seed, as for buying; strategies without randomness then have a single list
  # of prompts, and the report can say little about others. To compare
  # strategies, set 0.3 with 3 seeds, 0.1 with 10, and budgets of at most a
  # fifth of a part.
  c.study.pool_fraction = 1.0
  # Also finetune on the whole pool, if all of its answers are known.
  c.study.full_pool = True
  # Seeds of these cells, which take the longest; (): study.seeds.
  c.study.full_pool_seeds = ()

  c.annotation = ml_collections.ConfigDict()
  # A file of answers, for a pool that came without responses: a todo with the
  # answers filled in (as CSV, TSV, XLSX, JSON, JSONL or Parquet), or an export
  # of Label Studio, Argilla or Prodigy. The format is found by the content.
  c.annotation.answers_path = ''
  # What an answer costs, in your currency: a price per answer, and a price per
  # word of its prompt, for annotators who are paid by the text that they read.
  # Results do not depend on them; annotate, plan and report show the costs.
  c.annotation.price_per_answer = 0.0
  c.annotation.price_per_word = 0.0
  # Ask only for the picks of this strategy for the first seed: exactly the
  # largest budget. '': all that the study needs to compare its strategies.
  c.annotation.buy = ''
  # If several annotators answered a prompt differently: 'refuse' the file, or
  # take the 'first', the 'last' or the 'longest' answer.
  c.annotation.duplicates = 'refuse'
  # True: the file may change answers and rejections that were read before.
  # Cells made from the old answers are finetuned again.
  c.annotation.amend = False

  c.preview = ml_collections.ConfigDict()
  # Show the first prompts that this strategy chose for the first seed; '': the
  # first prompts of the pool.
  c.preview.strategy = ''

  c.plan = ml_collections.ConfigDict()
  # The workdir of an evaluated study, whose variances are used to estimate what
  # this one could find; '': those below, or this workdir's if it is evaluated.
  c.plan.pilot = ''
  # Standard deviation of report.metric over seeds, and over evaluation items of
  # a difference between two strategies; 0.0: unknown.
  c.plan.seed_sd = 0.0
  c.plan.item_sd = 0.0
  # The difference of report.metric from random that would matter: the plan says
  # how many seeds or items it needs; 0.0: none.
  c.plan.gain = 0.0
  # Prompts scored to measure how long the pool takes; 0: nothing is measured.
  c.plan.sample_prompts = 32

  c.finetuning = ml_collections.ConfigDict()
  # 'lora' | 'full'.
  c.finetuning.method = 'lora'
  # Rank of the adapters.
  c.finetuning.lora_rank = 16
  # The update is scaled by lora_alpha / lora_rank, with rslora by lora_alpha
  # divided by the square root of lora_rank (rank-stabilised adapters).
  c.finetuning.lora_alpha = 32.0
  c.finetuning.rslora = False
  # Probability that an input of an adapter is dropped in a training step.
  c.finetuning.lora_dropout = 0.0
  # Which projections get an adapter.
  c.finetuning.lora_targets = (
    'q_proj',
    'k_proj',
    'v_proj',
    'o_proj',
    'gate_proj',
    'up_proj',
    'down_proj',
  )
  # A folder with a PEFT adapter that every cell starts from, of the rank, scale
  # and targets above; '': new adapters. Scoring uses the model without it.
  c.finetuning.adapter_path = ''
  # Passes over a cell's examples, the same at every budget.
  c.finetuning.epochs = 3
  # Examples per optimizer step.
  c.finetuning.batch_size = 16
  # Pack several examples of a step into a row. No token attends to another
  # example, so results are those of one example per row.
  c.finetuning.packing = True
  # Rows computed at once; the gradients of a step's micro-batches are summed.
  # 0: as many as have 1,024 tokens per CPU (full: 2,048) or 4,096 per
  # accelerator.
  c.finetuning.micro_batch_size = 0
  # 'layer': keep only the inputs of layers for the backward pass, and compute
  # the rest again: less memory, a third to a half more time. 'none': keep all.
  # Neither packing nor micro_batch_size nor remat changes results beyond
  # rounding, and all three may change while a study is running.
  c.finetuning.remat = 'none'
  # Tokens per example at most; the prompt is truncated first. 0: the context.
  c.finetuning.max_length = 0
  # AdamW's peak rate; 0.0: 1e-3 for lora, 1e-4 for full.
  c.finetuning.learning_rate = 0.0
  # What follows the warm-up: 'cosine' | 'linear' (both end at zero) |
  # 'constant'.
  c.finetuning.schedule = 'cosine'
  # Linear warm-up, as a share of the cell's steps, but at least two steps; 0.0:
  # none.
  c.finetuning.warmup_fraction = 0.05
  c.finetuning.weight_decay = 0.0
  # Gradients are clipped to this global norm.
  c.finetuning.clip_norm = 1.0
  # Optimizer steps between checkpoints; an interrupted run resumes from the
  # last one.
  c.finetuning.checkpoint_steps = 200
  # Optimizer steps between lines of metrics.jsonl.
  c.finetuning.log_steps = 10
  # Optimizer steps between losses on the held-out prompts, in metrics.jsonl; 0:
  # none.
  c.finetuning.eval_steps = 0
  # Export the state with the lowest of these losses, not the last one. This and
  # early_stopping train strategies differently and choose by the prompts that
  # the evaluation uses.
  c.finetuning.keep_best = False
  # End a cell after this many of these losses without a new lowest one; 0: none
  # ends early.
  c.finetuning.early_stopping = 0
  # What lora writes for each cell: 'adapter' (PEFT) | 'merged' (a Hugging Face
  # model) | 'both', the merged one in a folder next to model.
  c.finetuning.export = 'adapter'
  # The project of Weights & Biases to log to, if wandb is installed; '': none.
  c.finetuning.wandb_project = ''

  c.evaluation = ml_collections.ConfigDict()
  # Tasks to evaluate every model on: 'heldout', the held-out prompts; 'mmlu';
  # 'bbh' (BIG-Bench Hard); 'gsm8k'; 'alpaca_eval', win rates by a judge;
  # 'lm_eval:NAME', a task of lm-evaluation-harness. 'TASK:chat' is a benchmark
  # in the chat template: list it next to TASK for both, since finetuned models
  # may have lost one form and gained the other.
  c.evaluation.tasks = ('heldout',)
  # Tokens of the greedy answer to a held-out prompt at most.
  c.evaluation.max_new_tokens = 64
  # Prompt and new tokens per batch, padding included.
  c.evaluation.batch_tokens = 32768
  # Evaluate only this many held-out prompts, from the start; 0: all.
  c.evaluation.limit = 0
  c.evaluation.mmlu = ml_collections.ConfigDict()
  # Questions: a file with subject, question, choices and answer (a letter or an
  # index from 0); a folder of the original CSV files; or hf:NAME:CONFIG/SPLIT.
  c.evaluation.mmlu.path = ''
  # Worked examples, in the same forms: the dev split.
  c.evaluation.mmlu.shots_path = ''
  # Worked examples per prompt, the first ones of the subject.
  c.evaluation.mmlu.shots = 5
  # Questions per subject, from the start; 0: all.
  c.evaluation.mmlu.limit = 0
  # Whose prompts and rules: 'original' (Hendrycks et al.) | 'open_instruct' |
  # 'lm_eval' (lm-evaluation-harness).
  c.evaluation.mmlu.protocol = 'lm_eval'
  # False: the prompt is plain text, as in the protocol; True: it is a user's
  # turn in the chat template.
  c.evaluation.mmlu.chat = False
  c.evaluation.bbh = ml_collections.ConfigDict()
  # Questions: a file with task, input and target; the folder bbh of BIG-Bench
  # Hard's repository; or hf:NAME/SPLIT.
  c.evaluation.bbh.path = ''
  # The prompts with worked examples: BIG-Bench Hard's folder cot-prompts, or a
  # JSON object with the text of each task.
  c.evaluation.bbh.shots_path = ''
  # Worked examples per prompt: 3 or, without reasoning, 0.
  c.evaluation.bbh.shots = 3
  # Questions per task, from the start; 0: all.
  c.evaluation.bbh.limit = 0
  # Whose prompts and rules: 'open_instruct' | 'lm_eval'.
  c.evaluation.bbh.protocol = 'lm_eval'
  # True: answers are reasoned ("Let's think step by step"); False: direct.
  c.evaluation.bbh.cot = True
  # False: the prompt is plain text, as in the protocol; True: it is a user's
  # turn in the chat template.
  c.evaluation.bbh.chat = False
  # Tokens per answer at most; 0: the protocol's own number.
  c.evaluation.bbh.max_new_tokens = 0
  c.evaluation.gsm8k = ml_collections.ConfigDict()
  # Questions: a file with question and answer (or prompt and response), or
  # hf:NAME:CONFIG/SPLIT.
  c.evaluation.gsm8k.path = ''
  # Worked examples, in the same forms: the training split.
  c.evaluation.gsm8k.shots_path = ''
  # Worked examples per prompt, drawn as the protocol does.
  c.evaluation.gsm8k.shots = 5
  # Questions, from the start; 0: all.
  c.evaluation.gsm8k.limit = 0
  # Whose prompts and rules: 'lm_eval'.
  c.evaluation.gsm8k.protocol = 'lm_eval'
  # False: the prompt is plain text, as in the protocol; True: it is a user's
  # turn in the chat template.
  c.evaluation.gsm8k.chat = False
  # Tokens per answer at most; 0: the protocol's own number.
  c.evaluation.gsm8k.max_new_tokens = 0
  c.evaluation.alpaca_eval = ml_collections.ConfigDict()
  # Instructions: alpaca_eval.json, or any file with instruction and, if known,
  # dataset; or hf:NAME:CONFIG/SPLIT. Prompts have the format of finetuning.
  c.evaluation.alpaca_eval.path = ''
  # Instructions, from the start; 0: all.
  c.evaluation.alpaca_eval.limit = 0
  # Tokens of the greedy answer at most.
  c.evaluation.alpaca_eval.max_new_tokens = 512
  # What each cell's outputs are compared with: 'random', those of random at the
  # same budget and for the same seed; or a file of outputs, a JSON list of
  # objects with instruction and output.
  c.evaluation.alpaca_eval.reference = 'random'
  # The judge: a Hugging Face model directory or a model's name on the hub;
  # 'endpoint', a model behind an OpenAI-compatible server, with the key in
  # OPENAI_API_KEY; 'annotations', the annotations.json that alpaca_eval wrote
  # and you put next to each cell's outputs.json; '': only write the outputs.
  c.evaluation.alpaca_eval.judge = ''
  # The server's address, up to /v1, and the judge's name there.
  c.evaluation.alpaca_eval.base_url = ''
  c.evaluation.alpaca_eval.model = ''
  # Requests that wait for the server at the same time, and seconds until one is
  # sent again.
  c.evaluation.alpaca_eval.num_parallel = 8
  c.evaluation.alpaca_eval.timeout = 60.0
  # What the server costs for a million tokens, in your currency; only printed.
  c.evaluation.alpaca_eval.price_per_million_tokens = 0.0
  # A file with the judge's prompt, which has {instruction}, {output_1} and
  # {output_2} and asks for m or M, such as AlpacaEval's alpaca_eval_clf.txt;
  # '': our own.
  c.evaluation.alpaca_eval.prompt_path = ''
  # Judge each pair in both orders, and average; False: in one, drawn as
  # AlpacaEval does.
  c.evaluation.alpaca_eval.both_orders = True
  # False: a cell has no win rate before all of its pairs are judged, and the
  # same command asks again for those that failed. True: an instruction that
  # failed for some cell is left out for all.
  c.evaluation.alpaca_eval.leave_out_failed = False
  # df_gamed.csv of the data set tatsu-lab/alpaca_eval, if the instructions are
  # its 805: the length-controlled win rate then also has their difficulties.
  c.evaluation.alpaca_eval.gamed_path = ''
  c.evaluation.lm_eval = ml_collections.ConfigDict()
  # Worked examples per prompt of the tasks 'lm_eval:NAME'; -1: the task's own
  # number.
  c.evaluation.lm_eval.shots = -1
  # Items per task of the harness, from the start; 0: all.
  c.evaluation.lm_eval.limit = 0
  # False: the prompt is plain text, as in the protocol; True: it is a user's
  # turn in the chat template.
  c.evaluation.lm_eval.chat = False
  # A folder of further tasks in the harness's own form; '': none.
  c.evaluation.lm_eval.include_path = ''

  c.report = ml_collections.ConfigDict()
  # The metric of the headline table: 'loss' | 'exact_match' | 'rouge_l', or
  # TASK.METRIC of another evaluation task, such as 'mmlu.accuracy'.
  c.report.metric = 'rouge_l'
  # Confidence level of all intervals; 1 minus it is the level of the tests.
  c.report.confidence = 0.95
  # What an hour of this machine costs, in the currency of annotation's prices;
  # 0.0: the cost of scoring and choosing is only given in seconds.
  c.report.price_per_hour = 0.0
  # Title of the page; '': the workdir's name.
  c.report.title = ''
  # A line under the title, such as the source and licence of the data.
  c.report.note = ''

  c.lock()
  return c


def option_names(config: ml_collections.ConfigDict) -> list[str]:
  """Dotted names of every option, as the command line spells them."""
  names = []
  for name, value in config.items():
    if isinstance(value, ml_collections.ConfigDict):
      names += [f'{name}.{inner}' for inner in option_names(value)]
    else:
      names.append(name)
  return names
