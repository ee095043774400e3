"""Counts which models fit on which accelerators, for docs/accelerators.md.

  python scripts/count_memory.py TABLE

A tenth of the card is left to what is not counted.

Tables:
  scoring     for prompts of 512 tokens with 64 new ones, the largest power of
              two that scoring.batch_tokens can be, or nothing if not even 1,024
              fits.
  finetuning  in bfloat16 with examples of 2,048 tokens, the largest power of
              two that finetuning.micro_batch_size can be, or nothing if not
              even one row per card fits.
  residuals   of LoRA at the widths of 7B with 16 x 2,048 tokens, in GiB.
  compiled    what a micro-batch needs, calculated and as XLA allocates it on
              this CPU, for four layers of SmolLM2-135M's shape in float32.
"""

from collections.abc import Callable, Iterable, Iterator
import dataclasses
import functools
import itertools
import math

import command_line
import jax
from model_shapes import SHAPES, read_config

from edsft_jax import config, models
from edsft_jax.finetuning import footprint, loss, options
from edsft_jax.finetuning.memory import REMAT, MemoryOptions
from edsft_jax.finetuning.trainer import METHODS
from edsft_jax.inference import memory
from edsft_jax.mesh import make_mesh

PROMPT_LENGTH, NUM_NEW = 512, 64
EXAMPLE_LENGTH = 2048
NUM_COMPILED = 4
CARDS_GB = (24, 40, 80)
DTYPES = ('bfloat16_weights', 'bfloat16', 'float32')
# Name -> width, MLP width, layers, heads, key/value heads, vocabulary.
SIZES = {
  '7B (Llama 2)': (4096, 11_008, 32, 32, 32, 32_000),
  '8B (Llama 3)': (4096, 14_336, 32, 32, 8, 128_256),
  '13B (Llama 2)': (5120, 13_824, 40, 40, 40, 32_000),
}


def decoder_config(name: str) -> models.DecoderConfig:
  """The architecture of a size, or of model_shapes.SHAPES."""
  fields = SHAPES.get(name)
  if fields is None:
    width, mlp_width, layers, heads, kv_heads, vocab = SIZES[name]
    fields = SHAPES['llama2_7b'] | {
      'vocab_size': vocab,
      'hidden_size': width,
      'intermediate_size': mlp_width,
      'num_hidden_layers': layers,
      'num_attention_heads': heads,
      'num_key_value_heads': kv_heads,
    }
  return read_config(fields)


def counts(model: models.DecoderConfig, dtype: str) -> dict[int, memory.Memory]:
  """What is needed, by batch_tokens, in ascending powers of two."""
  return {
    batch_tokens: memory.count(
      model,
      dtype,
      batch_tokens=batch_tokens,
      prompt_length=PROMPT_LENGTH,
      num_new=NUM_NEW,
    )
    for batch_tokens in (2**power for power in range(10, 19))
  }


def scoring_rows() -> Iterator[str]:
  """Lines of a Markdown table."""
  cards = ' | '.join(f'{gigabytes} GB' for gigabytes in CARDS_GB)
  yield f'| model | dtype | weights | {cards} |'
  yield '|---' * (3 + len(CARDS_GB)) + '|'
  for name in SIZES:
    model = decoder_config(name)
    for dtype in DTYPES:
      needed = counts(model, dtype)
      largest = []
      for card in CARDS_GB:
        usable = footprint.USABLE * card * 1e9
        fit = [size for size, n in needed.items() if n.total <= usable]
        largest.append(f'{fit[-1]:,}' if fit else 'no')
      weights = needed[1024].weights / 1e9
      yield f'| {name} | `{dtype}` | {weights:.1f} GB | {" | ".join(largest)} |'


def setup(
  name: str, method: str, remat: str, num_cards: int = 1
) -> footprint.Setup:
  """Finetuning of a size with the default options, in bfloat16."""
  c = config.get_config().finetuning
  c.method, c.remat = method, remat
  return footprint.Setup(
    decoder_config(name),
    'bfloat16',
    options.hyperparameters(c),
    MemoryOptions.of(c),
    make_mesh(1, num_cards, devices=jax.devices()[:num_cards]),
    of_platform='gpu',
  )


@functools.cache
def finetuned(of: footprint.Setup, rows: int) -> footprint.Memory:
  """The memory that micro-batches of this many rows per card need."""
  shape = (rows * of.mesh.size, EXAMPLE_LENGTH)
  return footprint.count(of, shape, loss.MAX_LOGITS)


def finetuning_rows(
  names: Iterable[str] = SIZES, methods: Iterable[str] = METHODS
) -> Iterator[str]:
  """Lines of a Markdown table."""
  cards = [(1, gigabytes) for gigabytes in CARDS_GB] + [(8, 80)]
  heads = [f'{n} x {gb} GB' if n > 1 else f'{gb} GB' for n, gb in cards]
  yield f'| model | method | remat | state | {" | ".join(heads)} |'
  yield '|---' * (4 + len(cards)) + '|'
  for name, method, remat in itertools.product(names, methods, REMAT):
    cells = []
    for num_cards, gigabytes in cards:
      of = setup(name, method, remat, num_cards)
      one, two = finetuned(of, 1), finetuned(of, 2)
      left = footprint.USABLE * gigabytes * 1e9 - one.total
      # Each row takes what the second one takes.
      rows = 1 + left / (two.total - one.total)
      fits = left >= 0
      cells.append(f'{num_cards * 2 ** int(math.log2(rows))}' if fits else 'no')
    fixed = finetuned(setup(name, method, remat), 1).fixed
    yield (
      f'| {name} | {method} | `{remat}` | {fixed / 1e9:.1f} GB | '
      f'{" | ".join(cells)} |'
    )


def residual_rows() -> Iterator[str]:
  """Lines of a Markdown table."""
  yield '| vocabulary | remat | residuals | recomputed | logits |'
  yield '|---' * 5 + '|'
  for vocab_size, remat in itertools.product((32_000, 128_256), REMAT):
    of = setup('7B (Llama 2)', 'lora', remat)
    of = of._replace(
      config=dataclasses.replace(of.config, vocab_size=vocab_size)
    )
    needed = finetuned(of, 16)
    cells = (
      f'{size / 2**30:.1f}'
      for size in (needed.residuals, needed.recomputed, needed.logits)
    )
    yield f'| {vocab_size:,} | `{remat}` | {" | ".join(cells)} |'


def compiled_rows() -> Iterator[str]:
  """Lines of a Markdown table."""
  yield '| method | remat | micro-batch | by count | allocated |'
  yield '|---' * 5 + '|'
  for method, remat, (rows, length) in itertools.product(
    METHODS, REMAT, ((4, 256), (1, 1024))
  ):
    of = setup('smollm2_135m', method, remat)
    of = of._replace(
      config=dataclasses.replace(of.config, num_layers=NUM_COMPILED),
      dtype='float32',
      of_platform='cpu',
    )
    needed = footprint.count(of, (rows, length))
    step = footprint.abstract_trainer(of, NUM_COMPILED).lower(
      footprint.abstract_batch(rows, length)
    )
    analysis = step.compile().memory_analysis()
    assert analysis is not None
    allocated = analysis.temp_size_in_bytes
    yield (
      f'| {method} | `{remat}` | {rows} x {length:,} | '
      f'{(needed.total - needed.fixed) / 1e6:.0f} MB | '
      f'{allocated / 1e6:.0f} MB |'
    )


def main() -> None:
  """Prints the tables that were asked for."""
  tables: dict[str, Callable[[], Iterator[str]]] = {
    'scoring': scoring_rows,
    'finetuning': lambda: finetuning_rows(arguments.sizes, arguments.methods),
    'residuals': residual_rows,
    'compiled': compiled_rows,
  }
  parser = command_line.parser(__doc__)
  parser.add_argument('table', choices=tables)
  for option, names in (('--sizes', SIZES), ('--methods', METHODS)):
    parser.add_argument(
      option,
      nargs='+',
      choices=names,
      default=names,
      metavar='NAME',
      help=f'for the table finetuning: {", ".join(names)}; all by default',
    )
  arguments = parser.parse_args()
  # Of a mesh only the sizes matter here.
  jax.config.update('jax_platforms', 'cpu')
  jax.config.update('jax_num_cpu_devices', 8)
  for row in tables[arguments.table]():
    print(row)


if __name__ == '__main__':
  command_line.run(main)
