"""Counts which models fit on which accelerators, for docs/accelerators.md.

  python scripts/count_memory.py

For prompts of 512 tokens with 64 new ones: the largest power of two that
scoring.batch_tokens can be, by edsft_jax.inference.memory, or nothing if not
even 1,024 fits. A tenth of the card is left to what is not counted.
"""

from collections.abc import Iterator
import json
import pathlib
import tempfile

from edsft_jax import models
from edsft_jax.inference import memory

PROMPT_LENGTH, NUM_NEW = 512, 64
USABLE = 0.9
CARDS_GB = (24, 40, 80)
DTYPES = ('bfloat16_weights', 'bfloat16', 'float32')
# Name -> width, MLP width, layers, heads, key/value heads, vocabulary.
SIZES = {
  '7B (Llama 2)': (4096, 11_008, 32, 32, 32, 32_000),
  '8B (Llama 3)': (4096, 14_336, 32, 32, 8, 128_256),
  '13B (Llama 2)': (5120, 13_824, 40, 40, 40, 32_000),
}


def decoder_config(name: str) -> models.DecoderConfig:
  """The architecture of a size."""
  width, mlp_width, layers, heads, kv_heads, vocab = SIZES[name]
  fields = {
    'model_type': 'llama',
    'architectures': ['LlamaForCausalLM'],
    'vocab_size': vocab,
    'hidden_size': width,
    'intermediate_size': mlp_width,
    'num_hidden_layers': layers,
    'num_attention_heads': heads,
    'num_key_value_heads': kv_heads,
    'max_position_embeddings': 4096,
    'rms_norm_eps': 1e-5,
    'rope_theta': 10_000.0,
    'tie_word_embeddings': False,
    'eos_token_id': 2,
  }
  with tempfile.TemporaryDirectory() as folder:
    (pathlib.Path(folder) / 'config.json').write_text(json.dumps(fields))
    return models.read_config(folder)


def counts(
  config: models.DecoderConfig, dtype: str
) -> dict[int, memory.Memory]:
  """What is needed, by batch_tokens, in ascending powers of two."""
  return {
    batch_tokens: memory.count(
      config,
      dtype,
      batch_tokens=batch_tokens,
      prompt_length=PROMPT_LENGTH,
      num_new=NUM_NEW,
    )
    for batch_tokens in (2**power for power in range(10, 19))
  }


def rows() -> Iterator[str]:
  """Lines of a Markdown table."""
  cards = ' | '.join(f'{gigabytes} GB' for gigabytes in CARDS_GB)
  yield f'| model | dtype | weights | {cards} |'
  yield '|---' * (3 + len(CARDS_GB)) + '|'
  for name in SIZES:
    config = decoder_config(name)
    for dtype in DTYPES:
      needed = counts(config, dtype)
      largest = []
      for card in CARDS_GB:
        usable = USABLE * card * 1e9
        fit = [size for size, n in needed.items() if n.total <= usable]
        largest.append(f'{fit[-1]:,}' if fit else 'no')
      weights = needed[1024].weights / 1e9
      yield f'| {name} | `{dtype}` | {weights:.1f} GB | {" | ".join(largest)} |'


def main() -> None:
  """Prints the table."""
  for row in rows():
    print(row)


if __name__ == '__main__':
  main()
