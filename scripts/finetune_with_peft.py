"""Finetunes with torch, transformers and peft; see benchmark_finetuning.py.

  python scripts/finetune_with_peft.py FOLDER VARIANT

Reads FOLDER/job.json and prints one line of JSON. VARIANT is a list of words
with + between them: 'padded' (logits of all positions, as Trainer computes
them), 'response' (of the last positions alone), 'compile', 'checkpoint'
(gradient checkpointing).
"""

import contextlib
import json
import os
import pathlib
import resource
import time

import command_line
import torch
import transformers


def load(job: dict, folder: pathlib.Path, device: str) -> torch.nn.Module:
  """The model of the job, with adapters if it says so."""
  dtype = getattr(torch, job['dtype'])
  if job['model']:
    auto = transformers.AutoModelForCausalLM
    model = auto.from_pretrained(job['model'], dtype=dtype)
  else:
    config = transformers.AutoConfig.from_pretrained(folder)
    with torch.device(device):
      model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
  model = model.to(device)
  if job['method'] == 'lora':
    import peft

    model = peft.get_peft_model(
      model,
      peft.LoraConfig(
        r=job['rank'],
        lora_alpha=2 * job['rank'],
        target_modules=job['targets'],
        task_type='CAUSAL_LM',
      ),
    )
  return model.train()


def tensors(
  examples: list[dict], device: str, left: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
  """Tokens, mask and labels, padded to the longest."""
  longest = max(len(e['tokens']) for e in examples)
  shape = (len(examples), longest)
  tokens = torch.zeros(shape, dtype=torch.long)
  mask = torch.zeros(shape, dtype=torch.long)
  labels = torch.full(shape, -100)
  for row, example in enumerate(examples):
    number = len(example['tokens'])
    start = longest - number if left else 0
    tokens[row, start : start + number] = torch.tensor(example['tokens'])
    mask[row, start : start + number] = 1
    first = start + number - example['num_response']
    labels[row, first : start + number] = tokens[row, first : start + number]
  return tokens.to(device), mask.to(device), labels.to(device)


def summed_loss(
  model: torch.nn.Module, examples: list[dict], device: str, response: bool
) -> torch.Tensor:
  """Summed nll of the responses."""
  tokens, mask, labels = tensors(examples, device, left=response)
  keep = 0
  if response:
    keep = max(e['num_response'] for e in examples) + 1
    labels = labels[:, -keep:]
  logits = model(
    input_ids=tokens, attention_mask=mask, use_cache=False, logits_to_keep=keep
  ).logits
  return torch.nn.functional.cross_entropy(
    logits[:, :-1].float().flatten(0, 1),
    labels[:, 1:].flatten(),
    reduction='sum',
  )


def main() -> None:
  """Trains on the batches of the job, and prints the measurements."""
  started = time.perf_counter()
  parser = command_line.parser(__doc__)
  parser.add_argument('folder', type=command_line.existing_folder)
  parser.add_argument('variant')
  arguments = parser.parse_args()
  folder, variant = arguments.folder, arguments.variant.split('+')
  job = json.loads((folder / 'job.json').read_text())
  device = 'cuda' if torch.cuda.is_available() else 'cpu'
  if device == 'cpu':
    torch.set_num_threads(len(os.sched_getaffinity(0)))
  model = load(job, folder, device)
  if 'checkpoint' in variant:
    model.gradient_checkpointing_enable()
    model.enable_input_require_grads()
  trained = [p for p in model.parameters() if p.requires_grad]
  optimizer = torch.optim.AdamW(trained, lr=1e-4, weight_decay=0.0)
  loss_of = torch.compile(summed_loss) if 'compile' in variant else summed_loss
  seconds, losses = [], []
  rows = job['peer_rows'] or len(job['steps'][0])
  for examples in job['steps']:
    start = time.perf_counter()
    number = sum(e['num_response'] for e in examples)
    total = 0.0
    for first in range(0, len(examples), rows):
      part = examples[first : first + rows]
      loss = loss_of(model, part, device, 'response' in variant) / number
      loss.backward()
      total += float(loss.detach())
    torch.nn.utils.clip_grad_norm_(trained, 1.0)
    optimizer.step()
    optimizer.zero_grad()
    losses.append(total)
    seconds.append(time.perf_counter() - start)
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 2**10
  if device == 'cuda':
    peak = torch.cuda.max_memory_allocated()
  print(
    json.dumps(
      {
        'whole': time.perf_counter() - started,
        'seconds': seconds,
        'losses': losses,
        'peak': peak,
      }
    )
  )


if __name__ == '__main__':
  with contextlib.suppress(BrokenPipeError):
    command_line.run(main)
