"""Trains the built-in base model, edsft_jax/models/demo, from scratch.

  python scripts/make_demo_model.py

Took 24 minutes on 2 cores, which other jobs used too; the final loss was 0.94
nats per token, and the files take 1.76 MiB. The no-finetuning line of the
quickstart's report shows how well the model does on the built-in pool.

The text is generated here: repeating words, counting, comparing, small sums,
spelling, facts as sentences, short scenes. It shares words and facts with the
built-in pool, but has different wordings and never contains a prompt of that
pool (this is checked). Reversing, sorting, parity, counting letters, last words
and large sums are not in it at all. So the model can do some tasks of the pool,
half do others, and must learn the rest.

The same versions on the same kind of machine give the same files.
"""

from collections.abc import Callable, Iterator
import pathlib
import time

import command_line
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import tokenizers
from tokenizers import decoders, pre_tokenizers, processors, trainers

from edsft_jax import console, models, store
from edsft_jax.models.decoder import Decoder
from edsft_jax.pool import demo

_SEED = 7
_ROWS = 48
_LENGTH = 64
_PEAK_RATE = 4e-3
_CONFIG = models.DecoderConfig(
  vocab_size=512,
  width=96,
  mlp_width=256,
  num_layers=4,
  num_heads=4,
  num_kv_heads=2,
  head_dim=24,
  tied=True,
  context=256,
)
_SPECIAL = ('<unk>', '<s>', '</s>')

# The text.


def _invented_word(draw: demo.Draw) -> str:
  """A pronounceable invented word, so that repeating it is a skill."""
  syllables = [
    draw.one('bcdfghklmnprstvwz') + draw.one('aeiou')
    for _ in range(draw.between(1, 3))
  ]
  return ''.join(syllables) + draw.one(('', *'nrstl'))


def _word(draw: demo.Draw) -> str:
  return draw.one(demo.WORDS) if draw.below(2) else _invented_word(draw)


def _say(draw: demo.Draw) -> str:
  word = _word(draw)
  wording = draw.one(
    ('Say {0}.', 'Just say {0}.', 'Answer with {0}.', 'Which word? {0}')
  )
  return f'{wording.format(word)}\n{word}'


def _first_word(draw: demo.Draw) -> str:
  words = [_word(draw) for _ in range(draw.between(2, 4))]
  wording = draw.one(('The first word of {0}:', 'Which word leads? {0}'))
  return f'{wording.format(" ".join(words))}\n{words[0]}'


def _next(draw: demo.Draw) -> str:
  n = draw.between(0, 99)
  wording = draw.one(('{0} and then?', 'After {0} comes', 'Count on from {0}:'))
  return f'{wording.format(n)}\n{n + 1}'


def _larger(draw: demo.Draw) -> str:
  a, b = draw.some(range(100), 2)
  wording = draw.one(('{0} or {1}: the greater?', 'Greater of {0} and {1}:'))
  return f'{wording.format(a, b)}\n{max(a, b)}'


def _sum(draw: demo.Draw) -> str:
  a, b = draw.between(0, 9), draw.between(0, 9)
  wording = draw.one(('{0} and {1} make', 'The sum of {0} and {1}:'))
  return f'{wording.format(a, b)}\n{a + b}'


def _run(draw: demo.Draw) -> str:
  start, step = draw.between(0, 60), draw.one((1, 1, 2, 5, 10))
  return ' '.join(str(start + i * step) for i in range(6))


def _spelled(draw: demo.Draw) -> str:
  word = _word(draw)
  return f'{word} is spelled {" ".join(word)}.'


def _scene(draw: demo.Draw) -> str:
  a, b, c = (draw.one(demo.WORDS) for _ in range(3))
  colour = draw.one(tuple(demo.COLOURS))
  verb = draw.one(('sees', 'has', 'wants', 'finds', 'likes'))
  place = draw.one(('near', 'under', 'behind', 'beside'))
  return f'The {colour} {a} {verb} a {b} {place} the {c}.'


def _colour(draw: demo.Draw) -> str:
  colour = draw.one(tuple(demo.COLOURS))
  things = demo.COLOURS[colour].split()
  # Questions about the first half only, statements about all.
  if draw.below(3) == 0:
    return (
      f'Say the colour of {draw.one(things[: len(things) // 2])}.\n{colour}'
    )
  return f'The colour of {draw.one(things)} is {colour}.'


def _opposite(draw: demo.Draw) -> str:
  a, b = draw.one(demo.OPPOSITES)
  return draw.one((f'{a} is not {b}.', f'{b} is the opposite of {a}.'))


def _plural(draw: demo.Draw) -> str:
  word = draw.one(demo.WORDS)
  return f'One {word} and {draw.between(2, 9)} {demo.plural(word)}.'


def _capital(draw: demo.Draw) -> str:
  country, city = draw.one(tuple(demo.CAPITALS.items()))
  return f'{city} is the capital of {country}.'


# (Share, kind of text).
_KINDS: tuple[tuple[int, Callable[[demo.Draw], str]], ...] = (
  (16, _say),
  (8, _first_word),
  (10, _next),
  (12, _larger),
  (14, _sum),
  (10, _run),
  (8, _spelled),
  (8, _scene),
  (8, _colour),
  (6, _opposite),
  (6, _plural),
  (4, _capital),
)


def documents(seed: int) -> Iterator[str]:
  """Yields pretraining text endlessly, without prompts of the pool."""
  draw = demo.Draw(seed)
  kinds = [make for share, make in _KINDS for _ in range(share)]
  prompts = {row['prompt'] for row in demo.rows()}
  while True:
    text = draw.one(kinds)(draw)
    assert prompts.isdisjoint(text.split('\n')), text
    yield text


# The tokenizer.


def make_tokenizer(texts: list[str]) -> tokenizers.Tokenizer:
  """Byte-level BPE, which encodes any text; each digit is a token."""
  tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
  tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
    [
      pre_tokenizers.Digits(individual_digits=True),
      pre_tokenizers.ByteLevel(add_prefix_space=False),
    ]
  )
  tokenizer.decoder = decoders.ByteLevel()
  tokenizer.train_from_iterator(
    texts,
    trainers.BpeTrainer(
      vocab_size=_CONFIG.vocab_size,
      special_tokens=list(_SPECIAL),
      initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
      show_progress=False,
    ),
  )
  bos, eos = _SPECIAL[1:]
  tokenizer.post_processor = processors.TemplateProcessing(
    single=f'{bos} $A',
    special_tokens=[(bos, tokenizer.token_to_id(bos))],
  )
  assert tokenizer.token_to_id(bos) == _CONFIG.bos_id
  assert (tokenizer.token_to_id(eos),) == _CONFIG.eos_ids
  return tokenizer


def save_tokenizer(
  tokenizer: tokenizers.Tokenizer, directory: pathlib.Path
) -> None:
  """Writes the tokenizer files of a Hugging Face directory."""
  unk, bos, eos = _SPECIAL
  tokenizer.save(str(directory / 'tokenizer.json'))
  store.write_json(
    directory / 'tokenizer_config.json',
    {
      'tokenizer_class': 'PreTrainedTokenizerFast',
      'bos_token': bos,
      'eos_token': eos,
      'unk_token': unk,
      'clean_up_tokenization_spaces': False,
      'model_max_length': _CONFIG.context,
    },
  )


# Training.


def batches(
  tokenizer: tokenizers.Tokenizer, steps: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """Yields tokens and mask, [B, L], of whole documents, each used once."""
  texts = documents(_SEED)
  (eos,) = _CONFIG.eos_ids
  ids: list[int] = []
  for _ in range(steps):
    tokens_BxL = np.zeros((_ROWS, _LENGTH), np.int32)
    mask_BxL = np.zeros((_ROWS, _LENGTH), bool)
    for row in range(_ROWS):
      num_tokens = 0
      while num_tokens + len(ids) <= _LENGTH:
        tokens_BxL[row, num_tokens : num_tokens + len(ids)] = ids
        num_tokens += len(ids)
        ids = [*tokenizer.encode(next(texts)).ids, eos]
        assert len(ids) <= _LENGTH
      mask_BxL[row, :num_tokens] = True
    yield tokens_BxL, mask_BxL


def train(tokenizer: tokenizers.Tokenizer, steps: int) -> Decoder:
  """Trains a decoder to predict every token of the text."""
  decoder = Decoder(_CONFIG, rngs=nnx.Rngs(_SEED))
  rate = optax.warmup_cosine_decay_schedule(0.0, _PEAK_RATE, steps // 20, steps)
  optimizer = optax.chain(
    optax.clip_by_global_norm(1.0),
    optax.adamw(rate, b2=0.98, weight_decay=0.05),
  )
  graph, params = nnx.split(decoder, nnx.Param)
  state = optimizer.init(params)

  def loss_fn(params, tokens_BxL, mask_BxL):
    decoder = nnx.merge(graph, params)
    logits_BxLxV = decoder.logits(decoder(tokens_BxL, mask_BxL).hidden_BxLxD)
    nll_BxL = optax.softmax_cross_entropy_with_integer_labels(
      logits_BxLxV[:, :-1], tokens_BxL[:, 1:]
    )
    counts_BxL = mask_BxL[:, 1:]
    return jnp.sum(nll_BxL * counts_BxL) / jnp.sum(counts_BxL)

  @jax.jit
  def step_fn(params, state, tokens_BxL, mask_BxL):
    loss, gradients = jax.value_and_grad(loss_fn)(params, tokens_BxL, mask_BxL)
    updates, state = optimizer.update(gradients, state, params)
    return optax.apply_updates(params, updates), state, loss

  with console.bar('train', steps, 'steps') as bar:
    for step, batch in enumerate(batches(tokenizer, steps), 1):
      params, state, loss = step_fn(params, state, *batch)
      bar.update()
      if step % 100 == 0 or step == steps:
        bar.set_postfix(loss=f'{loss:.3f}')
  console.say('train', f'loss {loss:.3f} nats per token in the last batch')
  nnx.update(decoder, params)
  return decoder


def main() -> None:
  """Trains the tokenizer and the model, and writes both."""
  parser = command_line.parser(__doc__)
  parser.add_argument(
    '--output',
    type=pathlib.Path,
    default=models.resolve('demo'),
    help='folder to write the model into; the package by default',
  )
  parser.add_argument(
    '--steps', type=command_line.positive, default=3000, help='optimizer steps'
  )
  arguments = parser.parse_args()
  start = time.monotonic()
  texts = documents(_SEED + 1)
  tokenizer = make_tokenizer([next(texts) for _ in range(20000)])
  decoder = train(tokenizer, arguments.steps)
  directory = arguments.output
  models.save_decoder(decoder, directory)
  save_tokenizer(tokenizer, directory)
  size = sum(f.stat().st_size for f in directory.iterdir())
  console.say(
    'train',
    f'{directory}: {size / 2**20:.2f} MiB, {time.monotonic() - start:.0f} s',
  )


if __name__ == '__main__':
  command_line.run(main)
