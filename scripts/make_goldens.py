"""Makes tests/models/goldens with transformers and torch.

  pip install torch 'transformers>=5.12,<6'
  python scripts/make_goldens.py [--shared=../shared]

Each golden is a tiny checkpoint with random weights and unusual config values,
and what transformers computes from it in float32: logits, greedy tokens,
probabilities, entropies, hidden states. rope.json has the frequencies of many
rope settings. With them, the tests need neither torch nor transformers' models.
--shared also makes greedy continuations of its pretrained model stories3M.
--only=CASE,CASE makes only these cases.
"""

import argparse
import copy
import json
import pathlib
import shutil

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

# Default or coinciding values (heads = width / head_dim, eps = 1e-5, ...) would
# hide a field that is read wrongly.
COMMON = {
  'hidden_size': 32,
  'intermediate_size': 44,
  'num_hidden_layers': 2,
  'num_attention_heads': 4,
  'num_key_value_heads': 2,
  'max_position_embeddings': 160,
  'rms_norm_eps': 2e-3,
  'bos_token_id': 1,
  'eos_token_id': 2,
}
SMALLER = {
  'vocab_size': 48,
  'hidden_size': 24,
  'intermediate_size': 28,
  'rms_norm_eps': 3e-3,
  'tie_word_embeddings': False,
}
DEFAULT_ROPE = {'rope_type': 'default', 'rope_theta': 321.0}
# Six of eight dimensions rotate.
LONGROPE = {
  'rope_type': 'longrope',
  'rope_theta': 321.0,
  'partial_rotary_factor': 0.75,
  'short_factor': [1.1, 1.3, 1.7],
  'long_factor': [1.2, 2.5, 6.0],
}
CASES = {
  # Tied, head_dim derived; config.json in the format of transformers 4.
  'tied_v4': {
    'fields': {
      'vocab_size': 64,
      'tie_word_embeddings': True,
      'rope_parameters': {'rope_type': 'default', 'rope_theta': 12345.0},
    },
    'length': 24,
    'dtype': torch.float32,
    'form': 4,
  },
  # Untied, head_dim unlike width / heads, biases everywhere, in shards.
  'biases_v5': {
    'fields': {
      'vocab_size': 97,
      'num_hidden_layers': 3,
      'num_key_value_heads': 1,
      'head_dim': 10,
      'attention_bias': True,
      'mlp_bias': True,
      'tie_word_embeddings': False,
      'rope_parameters': {'rope_type': 'default', 'rope_theta': 777.0},
    },
    'length': 20,
    'dtype': torch.bfloat16,
    'form': 5,
    'shards': '30KB',
  },
  'linear_v4': {
    'fields': {
      'vocab_size': 64,
      'tie_word_embeddings': False,
      'rope_parameters': {
        'rope_type': 'linear',
        'rope_theta': 12345.0,
        'factor': 3.0,
      },
    },
    'length': 40,
    'dtype': torch.float16,
    'form': 4,
  },
  # With theta 50 and head_dim 16 the wavelengths are 6 to 190 positions: some
  # below 40 / 4, some between, some above 40 / 1.25.
  'llama3_v5': {
    'fields': {
      'vocab_size': 64,
      'head_dim': 16,
      'tie_word_embeddings': True,
      'rope_parameters': {
        'rope_type': 'llama3',
        'rope_theta': 50.0,
        'factor': 5.0,
        'low_freq_factor': 1.25,
        'high_freq_factor': 4.0,
        'original_max_position_embeddings': 40,
      },
    },
    'length': 72,
    'dtype': torch.bfloat16,
    'form': 5,
  },
  # Every layer has a window of 7 tokens.
  'mistral_v4': {
    'family': 'Mistral',
    'fields': {
      **SMALLER,
      'sliding_window': 7,
      'rope_parameters': DEFAULT_ROPE,
    },
    'length': 26,
    'dtype': torch.float16,
    'form': 4,
  },
  # Biases of q, k and v; the first layer has no window.
  'qwen2_v4': {
    'family': 'Qwen2',
    'fields': {
      **SMALLER,
      'num_hidden_layers': 3,
      'tie_word_embeddings': True,
      'use_sliding_window': True,
      'sliding_window': 5,
      'max_window_layers': 1,
      'rope_parameters': DEFAULT_ROPE,
    },
    'length': 21,
    'dtype': torch.bfloat16,
    'form': 4,
  },
  # Norms of queries and keys, head_dim unlike width / heads; layer_types
  # contradict max_window_layers and take precedence.
  'qwen3_v5': {
    'family': 'Qwen3',
    'fields': {
      **SMALLER,
      'head_dim': 10,
      'attention_bias': True,
      'use_sliding_window': True,
      'sliding_window': 6,
      'max_window_layers': 1,
      'layer_types': ['sliding_attention', 'full_attention'],
      'rope_parameters': DEFAULT_ROPE,
    },
    'length': 22,
    'dtype': torch.bfloat16,
    'form': 5,
  },
  'olmo2_v5': {
    'family': 'Olmo2',
    'fields': {
      **SMALLER,
      'attention_bias': True,
      'rope_parameters': DEFAULT_ROPE,
    },
    'length': 18,
    'dtype': torch.bfloat16,
    'form': 5,
  },
  # Scores and logits are large enough for their caps; the first and third layer
  # have a window.
  'gemma2_v4': {
    'family': 'Gemma2',
    'fields': {
      **SMALLER,
      'num_hidden_layers': 3,
      'head_dim': 10,
      'attention_bias': True,
      'tie_word_embeddings': True,
      'query_pre_attn_scalar': 7,
      'attn_logit_softcapping': 3.0,
      'final_logit_softcapping': 4.0,
      'sliding_window': 5,
      'rope_parameters': DEFAULT_ROPE,
    },
    'length': 20,
    'dtype': torch.bfloat16,
    'form': 4,
  },
  # The first and third layer have a window and another theta.
  'gemma3_v4': {
    'family': 'Gemma3',
    'config': 'Gemma3Text',
    'fields': {
      **SMALLER,
      'num_hidden_layers': 3,
      'head_dim': 10,
      'query_pre_attn_scalar': 7,
      'final_logit_softcapping': 4.0,
      'sliding_window': 5,
      'sliding_window_pattern': 2,
      'rope_parameters': {
        'full_attention': {
          'rope_type': 'linear',
          'rope_theta': 321.0,
          'factor': 3.0,
        },
        'sliding_attention': {'rope_type': 'default', 'rope_theta': 40.0},
      },
    },
    'length': 20,
    'dtype': torch.bfloat16,
    'form': 4,
  },
  # Only the last layer has no window; its rope is stretched.
  'olmo3_v5': {
    'family': 'Olmo3',
    'fields': {
      **SMALLER,
      'num_hidden_layers': 3,
      'attention_bias': True,
      'sliding_window': 6,
      'layer_types': [
        'sliding_attention',
        'sliding_attention',
        'full_attention',
      ],
      'rope_parameters': {
        'full_attention': {
          'rope_type': 'yarn',
          'rope_theta': 30.0,
          'factor': 4.0,
          'original_max_position_embeddings': 20,
          'beta_fast': 2.0,
          'beta_slow': 0.5,
        },
        'sliding_attention': {'rope_type': 'default', 'rope_theta': 40.0},
      },
    },
    'length': 26,
    'dtype': torch.bfloat16,
    'form': 5,
  },
  # The first layer has no rope, the second a window and no rope.
  'smollm3_v5': {
    'family': 'SmolLM3',
    'fields': {
      **SMALLER,
      'num_hidden_layers': 3,
      'attention_bias': True,
      'mlp_bias': True,
      'pad_token_id': 0,
      'no_rope_layers': [0, 0, 1],
      'use_sliding_window': True,
      'sliding_window': 6,
      'layer_types': [
        'full_attention',
        'sliding_attention',
        'full_attention',
      ],
      'rope_parameters': DEFAULT_ROPE,
    },
    'length': 20,
    'dtype': torch.bfloat16,
    'form': 5,
  },
  # The last layer has neither a window nor rope.
  'exaone4_v4': {
    'family': 'Exaone4',
    'fields': {
      **SMALLER,
      'num_hidden_layers': 3,
      'head_dim': 10,
      'sliding_window': 5,
      'sliding_window_pattern': 3,
      'rope_parameters': {
        'rope_type': 'llama3',
        'rope_theta': 50.0,
        'factor': 5.0,
        'low_freq_factor': 1.25,
        'high_freq_factor': 4.0,
        'original_max_position_embeddings': 12,
      },
    },
    'length': 20,
    'dtype': torch.bfloat16,
    'form': 4,
  },
  # Prompts and new tokens within the original context.
  'phi3_v4': {
    'family': 'Phi3',
    'fields': {
      **SMALLER,
      'hidden_size': 32,
      'pad_token_id': 0,
      'sliding_window': 9,
      'original_max_position_embeddings': 30,
      'rope_parameters': LONGROPE,
    },
    'length': 16,
    'dtype': torch.bfloat16,
    'form': 4,
  },
  # Prompts beyond it.
  'phi3_v5': {
    'family': 'Phi3',
    'fields': {
      **SMALLER,
      'hidden_size': 32,
      'pad_token_id': 0,
      'original_max_position_embeddings': 20,
      'rope_parameters': {**LONGROPE, 'attention_factor': 1.4},
    },
    'length': 24,
    'dtype': torch.bfloat16,
    'form': 5,
  },
  'granite_v5': {
    'family': 'Granite',
    'fields': {
      **SMALLER,
      'attention_bias': True,
      'mlp_bias': True,
      'embedding_multiplier': 3.5,
      'residual_multiplier': 0.6,
      'attention_multiplier': 0.3,
      'logits_scaling': 2.5,
      'rope_parameters': DEFAULT_ROPE,
    },
    'length': 18,
    'dtype': torch.bfloat16,
    'form': 5,
  },
  'ministral_v5': {
    'family': 'Ministral',
    'fields': {
      **SMALLER,
      'head_dim': 10,
      'sliding_window': 5,
      'layer_types': ['sliding_attention', 'full_attention'],
      'rope_parameters': DEFAULT_ROPE,
    },
    'length': 18,
    'dtype': torch.bfloat16,
    'form': 5,
  },
  'seed_oss_v5': {
    'family': 'SeedOss',
    'fields': {
      **SMALLER,
      'head_dim': 10,
      'pad_token_id': 0,
      'attention_bias': True,
      'attention_out_bias': True,
      'mlp_bias': True,
      'rope_parameters': DEFAULT_ROPE,
    },
    'length': 18,
    'dtype': torch.bfloat16,
    'form': 5,
  },
  # Prompts beyond the original context of 20. With theta 30, the pairs of
  # head_dim 16 rotate 3.2 to 0.16 times in it: some more than 2, some less than
  # 0.5.
  'yarn_v5': {
    'family': 'Qwen2',
    'fields': {
      **SMALLER,
      'head_dim': 16,
      'use_sliding_window': False,
      'rope_parameters': {
        'rope_type': 'yarn',
        'rope_theta': 30.0,
        'factor': 4.0,
        'original_max_position_embeddings': 20,
        'beta_fast': 2.0,
        'beta_slow': 0.5,
        'mscale': 3.0,
        'mscale_all_dim': 0.6,
        'truncate': False,
      },
    },
    'length': 48,
    'dtype': torch.bfloat16,
    'form': 5,
  },
  # Prompts shorter than the context of 30; the new tokens exceed it.
  'dynamic_v4': {
    'family': 'Llama',
    'fields': {
      **SMALLER,
      'max_position_embeddings': 30,
      'rope_parameters': {
        'rope_type': 'dynamic',
        'rope_theta': 50.0,
        'factor': 3.0,
      },
    },
    'length': 26,
    'dtype': torch.bfloat16,
    'form': 4,
  },
  # Prompts beyond the context of 30.
  'dynamic_v5': {
    'family': 'Mistral',
    'fields': {
      **SMALLER,
      'max_position_embeddings': 30,
      'sliding_window': None,
      'rope_parameters': {
        'rope_type': 'dynamic',
        'rope_theta': 50.0,
        'factor': 3.0,
      },
    },
    'length': 41,
    'dtype': torch.bfloat16,
    'form': 5,
  },
}
# Settings of the frequencies in rope.json: fields, and the length of the row.
YARN = {'rope_type': 'yarn', 'rope_theta': 1e4, 'factor': 4.0}
YARN_AT_32 = {**YARN, 'original_max_position_embeddings': 32}
DYNAMIC = {'rope_type': 'dynamic', 'rope_theta': 1e4, 'factor': 2.5}
ROPES = (
  (YARN, None),
  (YARN_AT_32, None),
  ({**YARN_AT_32, 'truncate': False}, None),
  ({**YARN_AT_32, 'beta_fast': 3.0, 'beta_slow': 0.7}, None),
  ({**YARN_AT_32, 'beta_fast': 1.0, 'beta_slow': 1.0}, None),
  ({**YARN_AT_32, 'attention_factor': 1.7}, None),
  ({**YARN_AT_32, 'mscale': 2.0}, None),
  ({**YARN_AT_32, 'mscale': 2.0, 'mscale_all_dim': 0.5}, None),
  ({**YARN_AT_32, 'factor': 0.5}, None),
  ({**YARN, 'original_max_position_embeddings': 5}, None),
  (DYNAMIC, 1),
  (DYNAMIC, 64),
  (DYNAMIC, 65),
  (DYNAMIC, 200),
)
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
    model.to(case['dtype']).save_pretrained(
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
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--shared', type=pathlib.Path, default=None)
  parser.add_argument('--only', default='')
  arguments = parser.parse_args()
  only = arguments.only.split(',') if arguments.only else CASES
  for name, case in CASES.items():
    if name in only:
      make_case(name, case)
  make_ropes()
  if arguments.shared is not None:
    make_stories(arguments.shared)


if __name__ == '__main__':
  main()
