"""Scores prompts with transformers and torch: the peer of the score stage.

  python scripts/score_with_transformers.py MODEL PROMPTS.jsonl OUT.npz

What a careful user would write: prompts sorted by length, batches, greedy
generation that keeps the logits of every step, and one more forward pass for
the features and, if asked for, the scores of the prompt's own tokens.
"""

import json
import pathlib

import command_line
import numpy as np
import torch
import transformers


def statistics(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
  """Entropy and margin of the distributions [..., V]."""
  log_prob = torch.log_softmax(logits.float(), -1)
  prob = log_prob.exp()
  top = prob.topk(2).values
  return -(prob * log_prob).sum(-1), top[..., 0] - top[..., 1]


def pad_left(
  rows: list[list[int]], length: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
  """Token ids and mask, [rows, length]."""
  ids = torch.zeros(len(rows), length, dtype=torch.long)
  mask = torch.zeros(len(rows), length, dtype=torch.long)
  for number, row in enumerate(rows):
    ids[number, length - len(row) :] = torch.tensor(row)
    mask[number, length - len(row) :] = 1
  return ids.to(device), mask.to(device)


@torch.inference_mode()
def score(
  model: transformers.PreTrainedModel,
  rows: list[list[int]],
  max_new_tokens: int,
  prompt_scores: bool,
) -> dict[str, np.ndarray]:
  """Scores of one batch by name, each [rows]; features are [rows, D]."""
  ids, mask = pad_left(rows, max(map(len, rows)), model.device)
  hidden = model.model(
    input_ids=ids, attention_mask=mask, use_cache=False
  ).last_hidden_state
  found = {
    'features': (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
  }
  if prompt_scores:
    per_row = [
      statistics(model.lm_head(hidden[i, -len(row) : -1]))
      for i, row in enumerate(rows)
    ]
    found['prompt_mean_entropy'] = torch.stack([e.mean() for e, _ in per_row])
    found['prompt_min_margin'] = torch.stack([m.min() for _, m in per_row])
  if max_new_tokens:
    end_ids = torch.tensor(model.generation_config.eos_token_id or -1)
    out = model.generate(
      input_ids=ids,
      attention_mask=mask,
      do_sample=False,
      max_new_tokens=max_new_tokens,
      pad_token_id=0,
      output_logits=True,
      return_dict_in_generate=True,
    )
    new = out.sequences[:, ids.shape[1] :]
    ended = torch.isin(new, end_ids.reshape(-1).to(new.device))
    counts = ended.cumsum(1) - ended.int() == 0
    steps = [statistics(logits) for logits in out.logits]
    entropy = torch.stack([e for e, _ in steps], 1)
    margin = torch.stack([m for _, m in steps], 1)
    found['num_generated_tokens'] = counts.sum(1)
    found['mean_entropy'] = (entropy * counts).sum(1) / counts.sum(1)
    found['min_margin'] = margin.masked_fill(~counts, np.inf).min(1).values
  return {name: x.float().cpu().numpy() for name, x in found.items()}


def main() -> None:
  """Scores a file of prompts."""
  parser = command_line.parser(__doc__)
  add = parser.add_argument
  add('model', type=command_line.existing_folder, help='folder of a chat model')
  add('prompts', type=command_line.existing_file, help='JSONL with "prompt"')
  add('out', type=pathlib.Path, help='NPZ to write')
  add('--batch_size', type=command_line.positive, default=32)
  add('--max_new_tokens', type=int, default=64)
  add('--prompt_scores', action='store_true')
  arguments = parser.parse_args()
  tokenizer = transformers.AutoTokenizer.from_pretrained(arguments.model)
  model = transformers.AutoModelForCausalLM.from_pretrained(
    arguments.model, dtype=torch.float32
  ).eval()
  rows = []
  for line in arguments.prompts.read_text().splitlines():
    text = tokenizer.apply_chat_template(
      [{'role': 'user', 'content': json.loads(line)['prompt']}],
      tokenize=False,
      add_generation_prompt=True,
    )
    rows.append(tokenizer(text, add_special_tokens=False).input_ids)
  order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
  parts = []
  for start in range(0, len(order), arguments.batch_size):
    batch = [rows[i] for i in order[start : start + arguments.batch_size]]
    parts.append(
      score(model, batch, arguments.max_new_tokens, arguments.prompt_scores)
    )
  inverse = np.argsort(order)
  np.savez(
    arguments.out,
    allow_pickle=False,
    num_prompt_tokens=[len(row) for row in rows],
    **{n: np.concatenate([p[n] for p in parts])[inverse] for n in parts[0]},
  )


if __name__ == '__main__':
  command_line.run(main)
