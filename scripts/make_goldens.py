"""Makes tests/models/goldens with transformers and torch.

  pip install torch 'transformers>=5.12,<6'
  python scripts/make_goldens.py [--shared=../shared]

Each golden is a tiny checkpoint with random weights and unusual config values,
and what transformers computes from it in float32: logits, greedy tokens,
probabilities, entropies, hidden states. rope.json has the frequencies of many
rope settings. With them, the tests need neither torch nor transformers' models.
scripts/golden_cases.py has the cases and the settings. --shared also makes
greedy continuations of its pretrained model stories3M.
"""

import copy
import json
import pathlib
import shutil

import command_line
from golden_cases import CASES, COMMON, ROPES
import numpy as np
import tokenizers
import torch
import transformers
from transformers import modeling_rope_utils

GOLDENS = pathlib.Path(__file__).parents[1] / 'tests' / 'models' / 'goldens'
NUM_NEW_TOKENS = 12
# Least gap between the two best logits of a greedy step, as a share of the
# logits' spread: ten times the tolerance of the tests.
LEAST_GAP = 1e-3

STORIES = (
  'Once upon a time',
  'Lily and Tom went to the park. They saw a big',
  'The little dog was sad because',
)


def draw_model(case: dict, seed: int) -> torch.nn.Module:
  """A random model in which every tensor matters: none is zero, one or tiny."""
  torch.manual_seed(seed)
  family = case.get('family', 'Llama')
  config_class = getattr(transformers, f'{case.get("config", family)}Config')
  # Copied, since the class removes the rope's fields from the dictionary.
  config = config_class(**copy.deepcopy({**COMMON, **case['fields']}))
  model = getattr(transformers, f'{family}ForCausalLM')(config)
  with torch.no_grad():
    for name, parameter in model.named_parameters():
      if 'norm' in name:
        parameter.uniform_(0.5, 1.5)
      elif name.endswith('bias'):
        parameter.normal_(std=0.3)
      else:
        parameter.normal_(std=0.25)
  return model


def older_form(fields: dict) -> dict:
  """config.json as transformers 4 wrote it."""
  fields = dict(fields)
  rope = dict(fields.pop('rope_parameters'))
  if 'sliding_attention' in rope:
    fields['rope_local_base_freq'] = rope['sliding_attention']['rope_theta']
    rope = dict(rope['full_attention'])
    pattern = fields.pop('_sliding_window_pattern')
    fields['sliding_window_pattern'] = pattern
  for name in ('rope_theta', 'partial_rotary_factor'):
    if name in rope:
      fields[name] = rope.pop(name)
  if 'original_max_position_embeddings' in fields:
    rope.pop('original_max_position_embeddings', None)
  fields['rope_scaling'] = rope if rope['rope_type'] != 'default' else None
  fields['torch_dtype'] = fields.pop('dtype')
  fields['transformers_version'] = '4.44.0'
  fields.pop('layer_types', None)
  width = fields['hidden_size'] // fields['num_attention_heads']
  if fields.get('head_dim') == width:
    del fields['head_dim']
  return fields


def save_tokenizer(directory: pathlib.Path, vocab_size: int) -> None:
  """Writes a tokenizer of numbered words, to complete the directory."""
  words = ['<unk>', '<s>', '</s>', *(f'w{n}' for n in range(3, vocab_size))]
  tokenizer = tokenizers.Tokenizer(
    tokenizers.models.WordLevel(
      {word: n for n, word in enumerate(words)}, unk_token='<unk>'
    )
  )
  tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
  tokenizer.save(str(directory / 'tokenizer.json'), pretty=False)


def measure(model: torch.nn.Module, tokens: torch.Tensor) -> dict:
  """The values that the tests compare, for unpadded rows."""
  with torch.no_grad():
    output = model(tokens, output_hidden_states=True)
  log_probs = torch.log_softmax(output.logits, dim=-1)
  probs = log_probs.exp()
  return {
    'tokens': tokens.numpy().astype(np.int32),
    'logits': output.logits.numpy(),
    'top2': torch.topk(probs, 2, dim=-1).values.numpy(),
    'entropy': -(probs * log_probs).sum(-1).numpy(),
    # [layers + 1, B, D]: mean over the tokens, the embedding first.
    'pooled': torch.stack(output.hidden_states).mean(2).numpy(),
  }


def greedy(model: torch.nn.Module, tokens: torch.Tensor) -> tuple:
  """Greedy tokens, and the least relative gap of a step.

  Uses no cache, except for dynamic rope: as in generate, cached keys keep the
  rotation from when the row was shorter.
  """
  dynamic = model.config.rope_parameters.get('rope_type') == 'dynamic'
  new, gap, cache, read = [], np.inf, None, tokens
  for _ in range(NUM_NEW_TOKENS):
    with torch.no_grad():
      output = model(read, past_key_values=cache, use_cache=dynamic)
    cache = output.past_key_values
    logits = output.logits[:, -1]
    best = torch.topk(logits, 2, dim=-1).values
    spread = logits.max() - logits.min()
    gap = min(gap, float(((best[:, 0] - best[:, 1]) / spread).min()))
    new.append(logits.argmax(-1))
    tokens = torch.cat([tokens, new[-1][:, None]], dim=1)
    read = new[-1][:, None] if dynamic else tokens
  return torch.stack(new, 1).numpy().astype(np.int32), gap


def make_case(name: str, case: dict) -> None:
  """Draws models until the greedy path is unambiguous; writes the golden."""
  directory = GOLDENS / name
  for seed in range(100):
    shutil.rmtree(directory, ignore_errors=True)
    model = draw_model(case, seed)
    model.to(getattr(torch, case['dtype'])).save_pretrained(
      directory, max_shard_size=case.get('shards', '1GB')
    )
    # Reloaded, since casting the model in memory would also round its rope.
    model = transformers.AutoModelForCausalLM.from_pretrained(
      directory, dtype=torch.float32
    ).eval()
    torch.manual_seed(seed)
    vocab_size = case['fields']['vocab_size']
    tokens = torch.randint(3, vocab_size, (2, case['length']))
    values = measure(model, tokens)
    values['greedy'], gap = greedy(model, tokens)
    if gap > LEAST_GAP:
      break
  else:
    raise RuntimeError(f'{name}: no seed has an unambiguous greedy path')
  (directory / 'generation_config.json').unlink(missing_ok=True)
  file = directory / 'config.json'
  fields = json.loads(file.read_text())
  if case['form'] == 4:
    fields = older_form(fields)
  file.write_text(json.dumps(fields, indent=1) + '\n')
  save_tokenizer(directory, vocab_size)
  np.savez_compressed(directory / 'golden.npz', **values)
  for file in directory.iterdir():
    file.chmod(0o644)
  print(f'{name}: seed {seed}, least gap {gap:.1e}')


def make_ropes() -> None:
  """Frequencies and attention factor of each of ROPES."""
  rows = []
  for parameters, length in ROPES:
    fields = {
      'head_dim': 16,
      'max_position_embeddings': 64,
      'rope_parameters': parameters,
    }
    config = transformers.LlamaConfig(**copy.deepcopy(fields))
    compute = modeling_rope_utils.ROPE_INIT_FUNCTIONS[parameters['rope_type']]
    frequencies, attention_factor = compute(config, seq_len=length)
    rows.append(
      {
        'rope_parameters': parameters,
        'length': length,
        'frequencies': frequencies.tolist(),
        'attention_factor': attention_factor,
      }
    )
  (GOLDENS / 'rope.json').write_text(json.dumps(rows, indent=1) + '\n')


def make_stories(shared: pathlib.Path) -> None:
  """Greedy continuations of a pretrained model that writes fluent text."""
  path = shared / 'models' / 'stories3M'
  model = transformers.AutoModelForCausalLM.from_pretrained(
    path, dtype=torch.float32
  ).eval()
  tokenizer = transformers.AutoTokenizer.from_pretrained(path)
  rows = []
  for prompt in STORIES:
    ids = tokenizer(prompt, return_tensors='pt').input_ids
    new = model.generate(ids, max_new_tokens=40, do_sample=False)[0]
    new = new[ids.shape[1] :]
    with torch.no_grad():
      output = model(ids, output_hidden_states=True)
    rows.append(
      {
        'prompt': prompt,
        'prompt_ids': ids[0].tolist(),
        'new_ids': new.tolist(),
        'text': tokenizer.decode(new, skip_special_tokens=True),
        'first_top2': torch.topk(output.logits[0, -1].softmax(-1), 2)
        .values.numpy()
        .astype(float)
        .round(7)
        .tolist(),
        'pooled_norm': float(output.hidden_states[-1][0].mean(0).norm()),
      }
    )
  (GOLDENS / 'stories3M.json').write_text(json.dumps(rows, indent=1) + '\n')


def main() -> None:
  """Writes every golden."""
  parser = command_line.parser(__doc__)
  parser.add_argument(
    '--shared',
    type=command_line.existing_folder,
    help='the folder with models/stories3M',
  )
  parser.add_argument(
    '--only',
    nargs='+',
    choices=CASES,
    default=CASES,
    metavar='CASE',
    help='cases of scripts/golden_cases.py; all by default',
  )
  arguments = parser.parse_args()
  for name in arguments.only:
    make_case(name, CASES[name])
  make_ropes()
  if arguments.shared is not None:
    make_stories(arguments.shared)


if __name__ == '__main__':
  command_line.run(main)
