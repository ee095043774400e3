"""Model directories: what is read, what is refused, what is written."""

import fnmatch
import json
import pathlib
import shutil

from flax import nnx
import huggingface_hub
from huggingface_hub import errors as hub_errors
import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from edsft_jax import errors, models
from edsft_jax.mesh import make_mesh
from edsft_jax.models import checkpoint

SINGLE = 'model.safetensors'
INDEX = 'model.safetensors.index.json'
SHARD = 'model-00002-of-00003.safetensors'


@pytest.fixture
def single(goldens_path, tmp_path):
  """A whole model directory with one file of weights."""
  return shutil.copytree(goldens_path / 'tied_v4', tmp_path / 'single')


@pytest.fixture
def sharded(goldens_path, tmp_path):
  """A whole model directory with three files of weights."""
  return shutil.copytree(goldens_path / 'biases_v5', tmp_path / 'sharded')


def edit_tensors(file, change) -> None:
  tensors = safetensors.numpy.load_file(file)
  change(tensors)
  safetensors.numpy.save_file(tensors, file)


def edit_json(file, change) -> None:
  value = json.loads(file.read_text())
  change(value)
  file.write_text(json.dumps(value))


def refused(path, *parts) -> None:
  with pytest.raises(errors.InputError) as caught:
    models.check(path)
  for part in parts:
    assert part in str(caught.value)
  assert '\n' not in str(caught.value)
  with pytest.raises(errors.InputError):
    models.load_decoder(path, 'float32', make_mesh())


def leaves(decoder) -> list[np.ndarray]:
  return [np.asarray(leaf) for leaf in jax.tree.leaves(nnx.state(decoder))]


def assert_equal(first, second) -> None:
  for one, other in zip(leaves(first), leaves(second), strict=True):
    assert one.dtype == other.dtype
    np.testing.assert_array_equal(one, other)


def test_check_returns_the_config(single, sharded):
  assert models.check(single) == models.read_config(single)
  assert models.check(sharded) == models.read_config(sharded)


def test_no_weights(single):
  (single / SINGLE).unlink()
  refused(single, f'no {SINGLE}')


def test_only_pickled_weights(single):
  (single / SINGLE).rename(single / 'pytorch_model.bin')
  refused(single, 'pickled', 'safetensors')


@pytest.mark.parametrize('size', [0, 5, 2000, -1])
def test_truncated_file(single, size):
  data = (single / SINGLE).read_bytes()
  (single / SINGLE).write_bytes(data[:size])
  refused(single, SINGLE, 'copy it again')


def test_header_that_lies_about_sizes(single):
  data = (single / SINGLE).read_bytes()
  assert b'[64,32]' in data
  (single / SINGLE).write_bytes(data.replace(b'[64,32]', b'[65,32]', 1))
  refused(single, SINGLE, 'copy it again')


@pytest.mark.parametrize('length', [0, 1, 2**20, 2**40, 2**64 - 1])
def test_header_that_lies_about_its_own_length(single, length):
  data = (single / SINGLE).read_bytes()
  (single / SINGLE).write_bytes(length.to_bytes(8, 'little') + data[8:])
  refused(single, SINGLE, 'copy it again')


def test_header_that_places_two_tensors_in_one_spot(single):
  data = (single / SINGLE).read_bytes()
  length = int.from_bytes(data[:8], 'little')
  header = json.loads(data[8 : 8 + length])
  norms = [name for name in header if name.endswith('norm.weight')]
  header[norms[1]]['data_offsets'] = header[norms[0]]['data_offsets']
  text = json.dumps(header).encode()
  (single / SINGLE).write_bytes(
    len(text).to_bytes(8, 'little') + text + data[8 + length :]
  )
  refused(single, SINGLE, 'copy it again')


def test_missing_tensor(single):
  name = 'model.layers.1.mlp.up_proj.weight'
  edit_tensors(single / SINGLE, lambda tensors: tensors.pop(name))
  refused(single, 'has no tensor', name)


def test_more_layers_than_there_are_tensors_of(single):
  """Found before a decoder of this size is built, which would take hours."""
  file = single / 'config.json'
  fields = json.loads(file.read_text())
  file.write_text(json.dumps(fields | {'num_hidden_layers': 10**6}))
  refused(single, 'has no tensors model.layers.999999.', '1000000')


def test_extra_tensor(single):
  name = 'model.layers.2.input_layernorm.weight'
  edit_tensors(
    single / SINGLE, lambda t: t.update({name: np.ones(32, np.float32)})
  )
  refused(single, 'unknown', name)


def test_bias_that_the_config_denies(single):
  name = 'model.layers.0.self_attn.q_proj.bias'
  edit_tensors(
    single / SINGLE, lambda t: t.update({name: np.ones(32, np.float32)})
  )
  refused(single, 'unknown', name)


@pytest.mark.parametrize(
  'name', ['model.norm.weight', 'model.layers.0.self_attn.k_proj.weight']
)
def test_misshapen_tensor(single, name):
  edit_tensors(
    single / SINGLE,
    lambda t: t.update({name: np.ascontiguousarray(t[name].T[:-1])}),
  )
  refused(single, name)


def test_transposed_tensor(single):
  name = 'model.layers.0.mlp.up_proj.weight'
  edit_tensors(
    single / SINGLE,
    lambda t: t.update({name: np.ascontiguousarray(t[name].T)}),
  )
  refused(single, name, '[32, 44]', '[44, 32]')


def test_numbers_that_are_no_floats(single):
  name = 'model.norm.weight'
  edit_tensors(
    single / SINGLE, lambda t: t.update({name: np.ones(32, np.int8)})
  )
  refused(single, name, 'I8')


@pytest.mark.parametrize(
  ('prefix', 'remedy'),
  [
    ('', 'without an output layer'),
    ('language_model.', 'multimodal'),
    ('language_model.model.', 'multimodal'),
    ('model.language_model.', 'multimodal'),
    ('_orig_mod.model.', 'torch.compile'),
    ('module.model.', 'its module'),
    ('base_model.model.model.', 'merge_and_unload()'),
    ('transformer.decoder.', 'rename them'),
  ],
)
def test_tensors_with_a_foreign_prefix_are_named(single, prefix, remedy):
  def change(tensors):
    for name in list(tensors):
      tensors[prefix + name.removeprefix('model.')] = tensors.pop(name)

  edit_tensors(single / SINGLE, change)
  found = f'tensors {prefix}layers.* instead of model.layers.*'
  refused(single, str(single), found, remedy)


@pytest.mark.parametrize(
  'name',
  [SINGLE, 'tokenizer.json', 'config.json', INDEX, 'chat_template.jinja'],
)
def test_pointers_of_git_lfs_are_named(single, name):
  if name == INDEX:
    (single / SINGLE).unlink()
  (single / name).write_text(
    'version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 9\n'
  )
  refused(single, str(single / name), 'Git LFS pointer', 'git lfs pull')


@pytest.mark.parametrize('missing', [(SINGLE, 'config.json'), (SINGLE,)])
def test_an_adapter_is_not_a_model(single, missing):
  for file in missing:
    (single / file).unlink()
  (single / 'adapter_config.json').write_text('{}')
  refused(single, str(single), 'PEFT adapter', 'merge_and_unload()')


@pytest.mark.parametrize('kind', ['lora_A.default', 'base_layer'])
def test_tensors_of_peft_are_named(single, kind):
  old = 'model.layers.0.self_attn.o_proj.weight'
  new = f'model.layers.0.self_attn.o_proj.{kind}.weight'
  edit_tensors(single / SINGLE, lambda t: t.update({new: t.pop(old)}))
  refused(single, new, 'PEFT', 'merge_and_unload()')


def test_untied_without_an_output_layer(single):
  edit_json(
    single / 'config.json', lambda c: c.update(tie_word_embeddings=False)
  )
  refused(single, 'has no tensor', 'lm_head.weight')


def test_tied_with_a_copy_of_the_embedding_is_accepted(single, one_device):
  before = models.load_decoder(single, 'float32', one_device)
  edit_tensors(
    single / SINGLE,
    lambda t: t.update({'lm_head.weight': t['model.embed_tokens.weight']}),
  )
  assert_equal(models.load_decoder(single, 'float32', one_device), before)
  edit_tensors(
    single / SINGLE,
    lambda t: t.update({'lm_head.weight': t['lm_head.weight'] + 1}),
  )
  with pytest.raises(errors.InputError, match=r'lm_head.weight differs'):
    models.load_decoder(single, 'float32', one_device)


def test_buffers_that_follow_from_the_config_are_accepted(single):
  buffer = np.ones(4, np.float32)
  edit_tensors(
    single / SINGLE,
    lambda t: t.update(
      {'model.layers.0.self_attn.rotary_emb.inv_freq': buffer}
    ),
  )
  models.check(single)


def test_index_naming_a_missing_shard(sharded):
  (sharded / SHARD).unlink()
  refused(sharded, INDEX, SHARD, 'does not exist')


@pytest.mark.parametrize(
  'name',
  ['../sharded/' + SHARD, '/etc/passwd', 'sub/x.safetensors', '..', 3, [1]],
)
def test_index_naming_a_path_outside(sharded, name):
  def change(index):
    homes = index['weight_map']
    homes.update({t: name for t, file in homes.items() if file == SHARD})

  edit_json(sharded / INDEX, change)
  refused(sharded, INDEX, str(name), 'next to')


def test_index_without_a_map(sharded):
  edit_json(sharded / INDEX, lambda index: index.pop('weight_map'))
  refused(sharded, INDEX, 'weight_map')


def test_index_placing_a_tensor_in_the_wrong_shard(sharded):
  name = 'model.norm.weight'

  def change(index):
    homes = index['weight_map']
    homes[name] = next(file for file in homes.values() if file != homes[name])

  edit_json(sharded / INDEX, change)
  refused(sharded, name, 'another shard')


def test_index_naming_a_tensor_that_no_shard_has(sharded):
  edit_tensors(sharded / SHARD, lambda t: t.pop(sorted(t)[0]))
  refused(sharded, SHARD, 'has no tensor')


def test_tensor_in_two_shards(sharded):
  edit_tensors(
    sharded / SHARD,
    lambda t: t.update({'model.embed_tokens.weight': np.ones((97, 32))}),
  )
  refused(sharded, 'model.embed_tokens.weight', 'twice')


def test_tensor_that_the_index_does_not_list(sharded):
  edit_tensors(
    sharded / SHARD, lambda t: t.update({'model.surprise': np.ones(3)})
  )
  refused(sharded, 'model.surprise')


def test_a_tokenizer_of_other_files(single, one_device, tmp_path):
  (single / 'tokenizer.json').unlink()
  names = ('vocab.json', 'merges.txt')
  for name in names:
    (single / name).write_text('{}')
  models.check(single)
  decoder = models.load_decoder(single, 'float32', one_device)
  models.save_decoder(decoder, tmp_path / 'saved', single)
  assert all((tmp_path / 'saved' / name).is_file() for name in names)


def test_missing_tokenizer(single):
  (single / 'tokenizer.json').unlink()
  refused(single, 'tokenizer.json')


def test_unknown_architecture_and_rope_type_are_refused_before_loading(single):
  edit_json(
    single / 'config.json', lambda c: c.update(architectures=['BertModel'])
  )
  refused(single, 'config.json', 'architectures', 'BertModel')


class Hub:
  """Stands in for the hub: what it was asked, and what it answers."""

  def __init__(self):
    self.calls = []
    self.answer = None

  def __call__(self, name, *, allow_patterns):
    self.calls.append((name, allow_patterns))
    if isinstance(self.answer, Exception):
      raise self.answer
    return str(self.answer)


@pytest.fixture
def hub(monkeypatch):
  hub = Hub()
  monkeypatch.setattr(huggingface_hub, 'snapshot_download', hub)
  checkpoint._download.cache_clear()
  yield hub
  checkpoint._download.cache_clear()


@pytest.mark.parametrize(
  'path', ['', 'no/such/model', './owner/model', '/owner/model', 'owner/', 'x']
)
def test_resolve_refuses_what_is_not_a_directory(hub, path):
  with pytest.raises(
    errors.InputError, match=r'model\.path .* is not a directory'
  ):
    models.resolve(path)
  assert not hub.calls


def test_resolve_knows_the_demo(hub, single):
  assert models.resolve('demo').name == 'demo'
  assert models.resolve(str(single)) == single
  assert not hub.calls


def test_a_directory_takes_precedence_over_the_hub(hub, single, monkeypatch):
  monkeypatch.chdir(single.parent.parent)
  path = f'{single.parent.name}/{single.name}'
  assert models.resolve(path) == pathlib.Path(path)
  assert not hub.calls


def test_a_hub_name_is_downloaded_once_and_without_code(hub, sharded):
  (sharded / 'evil.py').write_text('')
  hub.answer = sharded
  assert models.check('owner/Model-1.5_b') == models.read_config(sharded)
  assert models.resolve('owner/Model-1.5_b') == sharded
  ((name, patterns),) = hub.calls
  assert name == 'owner/Model-1.5_b'

  def asked_for(file):
    return any(fnmatch.fnmatch(file, pattern) for pattern in patterns)

  needed = {file.name for file in sharded.iterdir()} - {'golden.npz', 'evil.py'}
  assert all(map(asked_for, needed))
  assert asked_for(SINGLE)
  assert asked_for('tokenizer_config.json')
  for file in (
    'evil.py',
    'pytorch_model.bin',
    'pytorch_model.bin.index.json',
    'training_args.bin',
    'original/consolidated.00.pth',
    'consolidated.safetensors',
  ):
    assert not asked_for(file)


@pytest.mark.parametrize(
  'error',
  [
    hub_errors.LocalEntryNotFoundError('Cannot find\nan appropriate folder'),
    hub_errors.HFValidationError('Repo id must not have --'),
    ConnectionError(),
  ],
)
def test_offline_or_unknown_names_are_one_line(hub, error):
  hub.answer = error
  with pytest.raises(errors.InputError) as caught:
    models.resolve('owner/model')
  message = str(caught.value)
  assert "model.path 'owner/model'" in message
  assert (' '.join(str(error).split()) or 'ConnectionError') in message
  assert 'give its directory' in message
  assert '\n' not in message


def test_offline_the_real_hub_library_says_so():
  """Nothing is asked of the network: conftest.py sets HF_HUB_OFFLINE."""
  assert huggingface_hub.constants.HF_HUB_OFFLINE
  checkpoint._download.cache_clear()
  with pytest.raises(
    errors.InputError, match=r"'owner/no-such' is not a direct"
  ):
    models.resolve('owner/no-such')


def test_pickles_on_the_hub_are_refused(hub, single):
  """They are not even downloaded."""
  (single / SINGLE).unlink()
  hub.answer = single
  with pytest.raises(errors.InputError, match='as safetensors'):
    models.check('owner/model')


def test_unknown_dtype():
  with pytest.raises(errors.InputError, match=r'model\.dtype.*float64'):
    models.parse_dtype('float64')


def test_mixed_types_are_read_exactly(single, one_device):
  names = {}

  def change(tensors):
    for number, (name, array) in enumerate(sorted(tensors.items())):
      kind = (np.float32, np.float16, ml_dtypes.bfloat16)[number % 3]
      tensors[name] = names[name] = array.astype(kind)

  edit_tensors(single / SINGLE, change)
  decoder = models.load_decoder(single, 'float32', one_device)
  layer = decoder.layers[1]
  for module, name in (
    (decoder.embed_tokens, 'model.embed_tokens.weight'),
    (layer.input_layernorm, 'model.layers.1.input_layernorm.weight'),
  ):
    np.testing.assert_array_equal(
      module.weight[...], names[name].astype(np.float32)
    )
  for module, name in (
    (layer.self_attn.k_proj, 'model.layers.1.self_attn.k_proj.weight'),
    (layer.mlp.gate_proj, 'model.layers.1.mlp.gate_proj.weight'),
    (layer.mlp.down_proj, 'model.layers.1.mlp.down_proj.weight'),
  ):
    np.testing.assert_array_equal(
      module.weight[...], names[name].astype(np.float32).T
    )


@pytest.mark.parametrize('sizes', [(1, 4, 2), (1, 2, 4)])
def test_each_device_holds_its_part_of_the_file(sharded, sizes):
  mesh = make_mesh(*sizes)
  decoder = models.load_decoder(sharded, 'bfloat16', mesh)
  with safetensors.safe_open(
    sharded / 'model-00001-of-00003.safetensors', 'numpy'
  ) as file:
    whole = file.get_tensor('model.layers.0.mlp.up_proj.weight').T
  up_proj = decoder.layers[0].mlp.up_proj.weight[...]
  assert up_proj.dtype == ml_dtypes.bfloat16
  shards = up_proj.addressable_shards
  assert len({str(shard.index) for shard in shards}) == 8
  for shard in shards:
    np.testing.assert_array_equal(shard.data, whole[shard.index])


@pytest.mark.parametrize(
  ('case', 'with_source'),
  [
    ('tied_v4', True),
    ('biases_v5', True),
    ('biases_v5', False),
    ('llama3_v5', True),
    ('llama3_v5', False),
    ('mistral_v4', False),
    ('qwen2_v4', False),
    ('qwen3_v5', True),
    ('qwen3_v5', False),
    ('olmo2_v5', False),
    ('gemma2_v4', False),
    ('gemma3_v4', False),
    ('olmo3_v5', False),
    ('smollm3_v5', False),
    ('exaone4_v4', False),
    ('phi3_v4', False),
    ('phi3_v5', True),
    ('granite_v5', False),
    ('ministral_v5', False),
    ('seed_oss_v5', False),
    ('yarn_v5', False),
    ('dynamic_v4', False),
  ],
)
def test_saved_directory_is_read_the_same(
  goldens, one_device, tmp_path, case, with_source
):
  golden = goldens[case]
  source = golden.path if with_source else None
  models.save_decoder(golden.decoder, tmp_path / 'new', source)
  fields = json.loads((tmp_path / 'new' / 'config.json').read_text())
  if with_source:
    before = json.loads((golden.path / 'config.json').read_text())
    name = 'dtype' if 'dtype' in before else 'torch_dtype'
    assert fields == {**before, name: 'float32'}
  else:
    assert fields['torch_dtype'] == 'float32'
    shutil.copyfile(
      golden.path / 'tokenizer.json', tmp_path / 'new' / 'tokenizer.json'
    )
  again = models.load_decoder(tmp_path / 'new', 'float32', one_device)
  assert again.config == golden.decoder.config
  assert_equal(again, golden.decoder)
  # Written from eight devices, the file has the same bytes.
  decoder = models.load_decoder(tmp_path / 'new', 'float32', make_mesh(2, 2, 2))
  models.save_decoder(decoder, tmp_path / 'eight', source)
  for name in (SINGLE, 'config.json'):
    assert (tmp_path / 'eight' / name).read_bytes() == (
      tmp_path / 'new' / name
    ).read_bytes()


def test_saving_keeps_tokenizer_and_names_as_hugging_face(
  goldens, single, one_device, tmp_path
):
  (single / 'tokenizer_config.json').write_text('{"bos_token": "<s>"}')
  (single / 'generation_config.json').write_text('{"eos_token_id": [2, 9]}')
  (single / 'README.md').write_text('about')
  decoder = models.load_decoder(single, 'bfloat16', one_device)
  models.save_decoder(decoder, tmp_path / 'new', single)
  names = {file.name for file in (tmp_path / 'new').iterdir()}
  assert names == {
    'config.json',
    'generation_config.json',
    'tokenizer.json',
    'tokenizer_config.json',
    SINGLE,
  }
  with safetensors.safe_open(tmp_path / 'new' / SINGLE, 'numpy') as file:
    assert file.metadata() == {'format': 'pt'}
    saved = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
  original = safetensors.numpy.load_file(single / SINGLE)
  assert set(saved) == set(original)
  for name, array in saved.items():
    assert array.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(
      array, original[name].astype(ml_dtypes.bfloat16)
    )
  assert models.end_ids(tmp_path / 'new') == (2, 9)


def test_hash_covers_what_changes_the_model_and_nothing_else(single):
  before = models.hash_model(single)
  (single / 'README.md').write_text('new')
  assert models.hash_model(single) == before
  seen = {before}
  for name in ('config.json', 'tokenizer.json'):
    with (single / name).open('a') as f:
      f.write(' ')
    seen.add(models.hash_model(single))
  for name in ('generation_config.json', 'chat_template.jinja'):
    (single / name).write_text('{}')
    seen.add(models.hash_model(single))
  edit_tensors(single / SINGLE, lambda t: t['model.norm.weight'].fill(2))
  seen.add(models.hash_model(single))
  assert len(seen) == 6


def test_hash_covers_every_shard(sharded):
  before = models.hash_model(sharded)
  edit_tensors(sharded / SHARD, lambda t: t[sorted(t)[0]].fill(2))
  assert models.hash_model(sharded) != before


@pytest.mark.parametrize(
  ('generation', 'config', 'expected'),
  [
    ([3, 4], 2, (3, 4)),
    (5, [2, 3], (5,)),
    (None, [2, 3], (2, 3)),
    (..., 2, (2,)),
    (..., None, ()),
    (0, 2, (0,)),
  ],
)
def test_end_ids(single, generation, config, expected):
  edit_json(single / 'config.json', lambda c: c.update(eos_token_id=config))
  if generation is not ...:
    (single / 'generation_config.json').write_text(
      json.dumps({'eos_token_id': generation})
    )
  assert models.end_ids(single) == expected
