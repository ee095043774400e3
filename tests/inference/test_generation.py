"""Continuations of prompts with common prefixes, against one row at a time."""

from flax import nnx
import jax
import numpy as np
import pytest

from edsft_jax import inference, models
from edsft_jax.mesh import make_mesh

NUM_NEW = 9
# Per part: prompts that share these many tokens, and what each has of its own.
GROUPS = (
  ((40, (1, 3, 14, 2)), (20, (5, 1, 9)), (0, (1, 12, 30))),
  ((0, ()),),
  ((60, (2, 2, 17, 8, 4)), (40, (11, 6)), (0, (21,))),
)


@pytest.fixture(scope='module')
def parts(goldens) -> list[list[list[int]]]:
  rng = np.random.default_rng(5)
  vocab = goldens['mistral_v4'].decoder.config.vocab_size

  def draw(size) -> list[int]:
    return rng.integers(3, vocab, size).tolist()

  found = []
  for part in GROUPS:
    rows = []
    for shared, own in part:
      prefix = draw(shared)
      rows += [[*prefix, *draw(size)] for size in own]
    found.append([rows[i] for i in rng.permutation(len(rows))])
  return found


def _end_ids(decoder) -> tuple[int, ...]:
  return tuple(range(0, decoder.config.vocab_size, 11))


def _engine(decoder, *parts, mesh=None, **options):
  return inference.GenerationEngine(
    decoder,
    mesh or make_mesh(devices=jax.devices()[:1]),
    parts,
    end_ids=_end_ids(decoder),
    max_new_tokens=NUM_NEW,
    **{'batch_tokens': 400, 'min_saved': 0.0, **options},
  )


@pytest.fixture(scope='module')
def alone(goldens, parts) -> list[list[list[int]]]:
  """What each prompt is continued with, in a batch of its own."""
  decoder = goldens['mistral_v4'].decoder
  weights = nnx.split(decoder)[1]
  mesh = make_mesh(devices=jax.devices()[:1])
  engine = inference.Engine(
    decoder,
    mesh,
    inference.Shapes((80,), (80,), (80,), 1, 20, (1.0,)),
    end_ids=_end_ids(decoder),
    max_new_tokens=NUM_NEW,
    batch_tokens=1,
    max_rows=1,
  )
  return [
    [engine.generate(weights, [ids]).tokens[0].tolist() for ids in part]
    for part in parts
  ]


@pytest.mark.parametrize(
  ('devices', 'options'),
  [
    (1, {}),
    (8, {}),
    # Several row lengths and cache lengths, and three prompts in a row.
    (1, {'num_passes': 10**6, 'batch_tokens': 3000}),
    (8, {'num_passes': 10**6, 'batch_tokens': 3000}),
  ],
)
def test_groups_are_continued_as_rows_of_their_own(
  goldens, parts, alone, devices, options
):
  mesh = make_mesh(devices=jax.devices()[:devices])
  decoder = models.load_decoder(goldens['mistral_v4'].path, 'float32', mesh)
  engine = _engine(decoder, *parts, mesh=mesh, **options)
  weights = nnx.split(decoder)[1]
  for number, expected in enumerate(alone):
    found = engine(weights, part=number)
    assert [ids.tolist() for ids in found.tokens] == expected
  lengths = {len(ids) for part in alone for ids in part}
  assert 1 < len(lengths) <= NUM_NEW


@pytest.mark.parametrize(
  'options', [{}, {'num_passes': 10**6, 'batch_tokens': 3000}]
)
def test_references_are_scored_and_change_no_continuation(
  goldens, parts, alone, options
):
  """Scores are those of the likelihood engine, and continuations stay the same.

  Some references are longer than their prompt's own tokens; some are missing.
  """
  decoder = goldens['mistral_v4'].decoder
  weights = nnx.split(decoder)[1]
  references = [[[*part[0][:n]] for n in range(len(part))] for part in parts]
  engine = _engine(decoder, *parts, references=references, **options)
  scorer = inference.LikelihoodEngine(
    decoder,
    make_mesh(devices=jax.devices()[:1]),
    [
      [
        inference.Target([*prompt, *reference], len(reference))
        for prompt, reference in zip(*part, strict=True)
      ]
      for part in zip(parts, references, strict=True)
    ],
    batch_tokens=400,
  )
  for number, expected in enumerate(alone):
    seen: list[inference.Work] = []
    found = engine(weights, part=number, progress=seen.append)
    assert [ids.tolist() for ids in found.tokens] == expected
    scored = scorer(weights, part=number)
    has_reference = [bool(ids) for ids in references[number]]
    if any(has_reference):
      nll = found.prompt_results['nll'][has_reference, 0]
      is_greedy = found.prompt_results['is_greedy'][has_reference, 0]
      np.testing.assert_allclose(nll, scored.nll[has_reference], rtol=1e-5)
      assert is_greedy.tolist() == scored.is_greedy[has_reference].tolist()
    # A prompt counts when it is continued, and a reference when it is scored.
    assert sum(work.prompts for work in seen) == len(expected) + sum(
      has_reference
    )


@pytest.mark.parametrize('known', [set(), {0, 1, 2, 5}, {*range(7)}])
def test_known_prompts_are_left_out(goldens, parts, known):
  """The others have the same bits, and each is reported once."""
  decoder = goldens['mistral_v4'].decoder
  weights = nnx.split(decoder)[1]
  references = [[[*parts[0][0][:n]] for n in range(len(parts[0]))]]
  engine = _engine(decoder, parts[0], references=references, batch_tokens=150)
  whole = engine(weights)
  new = sorted({*range(len(parts[0]))} - known)
  assert new
  seen, work = {}, []

  def found(indices, some):
    for number, index in enumerate(indices):
      assert index not in seen
      seen[index] = [
        x.tolist()
        for x in (
          some.tokens[number],
          some.stopped[number],
          *(some.prompt_results[k][number] for k in ('nll', 'is_greedy')),
          some.row_results[number],
        )
      ]

  engine(weights, work.append, known=known, found=found)
  assert seen == {
    i: [
      x.tolist()
      for x in (
        whole.tokens[i],
        whole.stopped[i],
        *(whole.prompt_results[k][i] for k in ('nll', 'is_greedy')),
        whole.row_results[i],
      )
    ]
    for i in new
  }


def test_each_prefix_is_read_once(goldens, parts):
  decoder = goldens['mistral_v4'].decoder
  seen: list[inference.Work] = []
  engine = _engine(decoder, parts[0])
  found = engine(nnx.split(decoder)[1], seen.append)
  work = sum(seen, inference.Work())
  own = sum(sum(sizes) for _, sizes in GROUPS[0])
  new = sum(map(len, found.tokens))
  assert work.tokens == 40 + 20 + own + new
  assert work.prompts == len(parts[0])


def test_prefixes_that_save_little_are_not_shared(goldens, parts):
  decoder = goldens['mistral_v4'].decoder
  weights = nnx.split(decoder)[1]
  seen: list[inference.Work] = []
  # Three further prompts have 40 tokens of the first, two have 20 of another.
  for least in (160, 161):
    engine = _engine(decoder, parts[0], min_saved=least)
    seen.append(inference.Work())
    engine(weights, lambda work: seen.append(seen.pop() + work))
  assert seen[1].tokens - seen[0].tokens == 160


def test_stop_strings_end_rows_of_any_wave(goldens, parts, alone):
  decoder = goldens['mistral_v4'].decoder
  engine = _engine(decoder, parts[2])
  row = max(range(len(alone[2])), key=lambda i: len(alone[2][i]))
  stop = inference.Stop(
    (f'<{alone[2][row][1]}>',), lambda ids: ''.join(f'<{i}>' for i in ids)
  )
  found = engine(nnx.split(decoder)[1], stop=stop)
  assert found.tokens[row].tolist() == alone[2][row][:2]
  for ids, whole in zip(found.tokens, alone[2], strict=True):
    place = [*whole, alone[2][row][1]].index(alone[2][row][1])
    assert ids.tolist() == whole[: place + 1]
