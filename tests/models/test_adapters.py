"""LoRA: what it adds, what it leaves alone, and PEFT's format."""

import json

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from edsft_jax import errors, models
from edsft_jax.mesh import make_mesh
from edsft_jax.models import lora

TARGETS = ('q_proj', 'v_proj', 'down_proj')


def adapted(golden, rank=3, alpha=6.0, targets=TARGETS, seed=0):
  decoder = nnx.clone(golden.decoder)
  models.add_lora(decoder, rank, alpha, targets, nnx.Rngs(seed))
  return decoder


def trained(golden, **options):
  """Adapters whose B is not zero."""
  decoder = adapted(golden, **options)
  graphdef, lora, rest = nnx.split(decoder, models.LoRAParam, ...)
  rng = np.random.default_rng(1)
  lora = jax.tree.map(
    lambda x: jnp.asarray(
      x + 0.1 * rng.standard_normal(x.shape).astype(np.float32)
    ),
    lora,
  )
  return nnx.merge(graphdef, lora, rest)


@pytest.fixture
def golden(goldens):
  return goldens['biases_v5']


def test_a_fresh_adapter_changes_nothing(golden, forward):
  decoder = adapted(golden)
  tokens = golden.values['tokens']
  np.testing.assert_array_equal(
    forward(decoder, tokens)[0], forward(golden.decoder, tokens)[0]
  )
  layer = decoder.layers[1]
  assert layer.self_attn.q_proj.lora_a.shape == (32, 3)
  assert layer.self_attn.q_proj.lora_b.shape == (3, 40)
  assert layer.self_attn.k_proj.lora_a is None
  bound = 1 / np.sqrt(44)
  a = np.asarray(layer.mlp.down_proj.lora_a[...])
  assert bound * 0.8 < np.abs(a).max() <= bound
  other = adapted(golden, seed=1).layers[1].mlp.down_proj.lora_a[...]
  assert not np.array_equal(a, other)
  assert not np.array_equal(a, decoder.layers[0].mlp.down_proj.lora_a[...])


def test_the_adapter_adds_its_scaled_product(golden):
  linear = trained(golden).layers[0].self_attn.q_proj
  x = np.random.default_rng(2).standard_normal((5, 32), np.float32)
  w, b, lora_a, lora_b = (
    np.asarray(variable[...])
    for variable in (linear.weight, linear.bias, linear.lora_a, linear.lora_b)
  )
  expected = x @ w + b + 6.0 / 3 * (x @ lora_a @ lora_b)
  np.testing.assert_allclose(linear(jnp.asarray(x)), expected, atol=1e-5)


def test_merged_is_like_the_adapter(golden, forward):
  decoder = trained(golden)
  tokens = golden.values['tokens']
  logits = forward(decoder, tokens)[0]
  assert np.abs(logits - golden.values['logits']).max() > 0.1
  merged = models.merged(decoder)
  np.testing.assert_allclose(
    forward(merged, tokens)[0], logits, rtol=0, atol=golden.tolerance / 3
  )
  # A plain decoder again, and the adapted one is as it was.
  assert nnx.graphdef(merged) == nnx.graphdef(golden.decoder)
  assert not jax.tree.leaves(nnx.state(merged, models.LoRAParam))
  np.testing.assert_array_equal(forward(decoder, tokens)[0], logits)
  np.testing.assert_array_equal(
    decoder.layers[0].self_attn.q_proj.weight[...],
    golden.decoder.layers[0].self_attn.q_proj.weight[...],
  )


def test_gradients_reach_the_adapter_alone(golden):
  decoder = adapted(golden)
  graphdef, lora, rest = nnx.split(decoder, models.LoRAParam, ...)
  tokens = jnp.asarray(golden.values['tokens'][:, :8])

  @jax.jit
  @jax.grad
  def gradient(lora):
    decoder = nnx.merge(graphdef, lora, rest)
    return decoder(tokens, jnp.ones(tokens.shape)).hidden_BxLxD.sum()

  leaves = nnx.to_flat_state(gradient(lora))
  assert len(leaves) == 3 * 3 * 2
  for path, leaf in leaves:
    # B is zero, so A does not matter yet.
    assert np.any(leaf[...] != 0) == (path[-1] == 'lora_b')


def test_adapters_stay_float32_under_a_bfloat16_model(golden, one_device):
  decoder = models.load_decoder(golden.path, 'bfloat16', one_device)
  models.add_lora(decoder, 2, 4.0, TARGETS, nnx.Rngs(0))
  linear = decoder.layers[0].self_attn.q_proj
  assert linear.lora_a[...].dtype == jnp.float32
  assert linear(jnp.ones((1, 32), jnp.bfloat16)).dtype == jnp.bfloat16
  assert models.merged(decoder).layers[0].self_attn.q_proj.weight[
    ...
  ].dtype == (jnp.bfloat16)


def test_round_trip_in_pefts_format(golden, forward, tmp_path):
  decoder = trained(golden)
  models.save_adapter(decoder, tmp_path, 'some/base')
  fields = json.loads((tmp_path / 'adapter_config.json').read_text())
  assert fields['peft_type'] == 'LORA'
  assert fields['task_type'] == 'CAUSAL_LM'
  assert fields['base_model_name_or_path'] == 'some/base'
  assert (fields['r'], fields['lora_alpha']) == (3, 6.0)
  assert sorted(fields['target_modules']) == sorted(TARGETS)
  tensors = safetensors.numpy.load_file(tmp_path / 'adapter_model.safetensors')
  assert len(tensors) == 3 * 3 * 2
  prefix = 'base_model.model.model.layers.2.mlp.down_proj'
  linear = decoder.layers[2].mlp.down_proj
  np.testing.assert_array_equal(
    tensors[f'{prefix}.lora_A.weight'], linear.lora_a[...].T
  )
  np.testing.assert_array_equal(
    tensors[f'{prefix}.lora_B.weight'], linear.lora_b[...].T
  )
  again = nnx.clone(golden.decoder)
  models.load_adapter(again, tmp_path)
  tokens = golden.values['tokens']
  np.testing.assert_array_equal(
    forward(again, tokens)[0], forward(decoder, tokens)[0]
  )


@pytest.mark.parametrize('targets', [('q_proj', 'v_proj', 'down_proj'), None])
def test_adapters_of_fused_projections(goldens, forward, tmp_path, targets):
  """Fused like the projections of the checkpoint; they add the same."""
  golden = goldens['phi3_v4']
  decoder = trained(golden, targets=targets or lora.TARGETS)
  models.save_adapter(decoder, tmp_path, 'base')
  fields = json.loads((tmp_path / 'adapter_config.json').read_text())
  modules = {'qkv_proj', 'down_proj'}
  modules |= set() if targets else {'o_proj', 'gate_up_proj'}
  assert set(fields['target_modules']) == modules
  # Of two adapters of rank 3 side by side, or of three, at the scale of one.
  assert fields['r'] == (6 if targets else 9)
  assert fields['lora_alpha'] / fields['r'] == 2.0
  tensors = safetensors.numpy.load_file(tmp_path / 'adapter_model.safetensors')
  assert len(tensors) == 2 * 2 * len(modules)
  # In float64, for each fused module: what the parts add, one after the other.
  prefix = 'base_model.model.model.layers.1.self_attn.qkv_proj'
  a, b = (
    tensors[f'{prefix}.lora_{name}.weight'].astype(np.float64) for name in 'AB'
  )
  attention = decoder.layers[1].self_attn
  parts = []
  for name in ('q_proj', 'k_proj', 'v_proj'):
    linear = getattr(attention, name)
    if linear.lora_a is None:
      parts.append(np.zeros(linear.weight.shape))
    else:
      parts.append(np.asarray(linear.lora_a[...]) @ linear.lora_b[...])
  np.testing.assert_allclose((b @ a).T, np.hstack(parts), atol=1e-5)
  again = nnx.clone(golden.decoder)
  models.load_adapter(again, tmp_path)
  tokens = golden.values['tokens']
  np.testing.assert_allclose(
    forward(again, tokens)[0],
    forward(decoder, tokens)[0],
    rtol=0,
    atol=golden.tolerance / 3,
  )


def test_adapters_are_on_the_mesh(golden):
  decoder = trained(golden)
  mesh = make_mesh(2, 2, 2)
  models.shard_decoder(decoder, mesh)
  linear = decoder.layers[0].self_attn.q_proj
  for variable, shape in ((linear.lora_a, (16, 3)), (linear.lora_b, (3, 20))):
    array = variable[...]
    assert array.sharding.shard_shape(array.shape) == shape


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'targets': ('q_proj', 'wq')}, "'wq'"),
    ({'targets': ('lm_head',)}, "'lm_head'"),
    ({'targets': ()}, 'no LoRA targets'),
    ({'rank': 0}, 'rank is 0'),
  ],
)
def test_bad_options(golden, options, message):
  with pytest.raises(errors.InputError, match=message):
    adapted(golden, **options)


def test_saving_needs_adapters_and_a_merge(golden, tmp_path):
  with pytest.raises(ValueError, match='no adapters'):
    models.save_adapter(golden.decoder, tmp_path, 'base')
  with pytest.raises(ValueError, match='merged'):
    models.save_decoder(adapted(golden), tmp_path)


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'peft_type': 'IA3'}, 'only LORA'),
    ({'bias': 'all'}, 'without bias'),
    ({'use_dora': True}, 'use_dora'),
    ({'lora_bias': True}, 'lora_bias'),
    ({'init_lora_weights': 'pissa_niter_4'}, 'init_lora_weights'),
    ({'rank_pattern': {'q_proj': 9}}, 'rank_pattern'),
    ({'modules_to_save': ['lm_head']}, 'modules_to_save'),
    ({'target_modules': ['q_proj', 'nope']}, 'nope'),
    ({'target_modules': ['q_proj', 'v_proj']}, 'unknown tensor'),
    ({'target_modules': [*TARGETS, 'k_proj']}, 'k_proj.lora_A'),
    ({'r': 4}, 'the model needs'),
    ({'r': 'x'}, 'r or lora_alpha'),
  ],
)
def test_bad_adapters(golden, tmp_path, changes, message):
  models.save_adapter(trained(golden), tmp_path, 'base')
  file = tmp_path / 'adapter_config.json'
  file.write_text(json.dumps(json.loads(file.read_text()) | changes))
  with pytest.raises(errors.InputError, match=message):
    models.load_adapter(nnx.clone(golden.decoder), tmp_path)


def test_truncated_and_missing_adapters(golden, tmp_path):
  models.save_adapter(trained(golden), tmp_path, 'base')
  file = tmp_path / 'adapter_model.safetensors'
  file.write_bytes(file.read_bytes()[:-7])
  with pytest.raises(errors.InputError, match='copy it again'):
    models.load_adapter(nnx.clone(golden.decoder), tmp_path)
  file.rename(tmp_path / 'adapter_model.bin')
  with pytest.raises(errors.InputError, match='save it as safetensors'):
    models.load_adapter(nnx.clone(golden.decoder), tmp_path)
  with pytest.raises(errors.InputError, match='save it as safetensors'):
    models.hash_adapter(tmp_path)
  (tmp_path / 'adapter_config.json').unlink()
  with pytest.raises(errors.InputError, match=r'adapter_config\.json'):
    models.load_adapter(nnx.clone(golden.decoder), tmp_path)
