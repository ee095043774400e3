"""Reads and writes Hugging Face model directories, safetensors only.

Weights are read from the mapped file straight into sharded arrays, one device's
part at a time, without a whole copy in memory. Reading is strict: any mismatch
with the decoder is an error that names the tensor.
"""

from collections.abc import Callable
import functools
import pathlib
import re
import shutil
from typing import Any

from flax import nnx
import huggingface_hub
import jax  # Before safetensors: registers bfloat16 with numpy.
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from edsft_jax import errors, store
from edsft_jax.models import config_json, diagnosis, tensors
from edsft_jax.models.config import DecoderConfig
from edsft_jax.models.decoder import Decoder
from edsft_jax.models.placement import StatePath, placed
from edsft_jax.models.tokenizer import FILES as TOKENIZER_FILES
from edsft_jax.models.tokenizer import check_files

WEIGHTS = 'model.safetensors'
INDEX = 'model.safetensors.index.json'
# model.dtype -> dtypes of weights and of activations.
DTYPES = {
  'float32': ('float32', 'float32'),
  'bfloat16': ('bfloat16', 'bfloat16'),
  'bfloat16_weights': ('bfloat16', 'float32'),
  'float16': ('float16', 'float16'),
}
_FILE_DTYPES = ('F32', 'BF16', 'F16')
_PICKLES = ('*.bin', '*.pt', '*.pth', '*.ckpt', '*.pkl')
# Buffers in old checkpoints that follow from the config.
_IGNORED_SUFFIXES = ('rotary_emb.inv_freq',)

_HUB_NAME = re.compile(r'[A-Za-z0-9][\w.-]*/[\w.-]+')

Path = str | pathlib.Path


def resolve(path: Path) -> pathlib.Path:
  """'demo', a directory or a name on the Hugging Face hub -> a directory.

  A directory takes precedence over a model of the same name on the hub. From
  the hub, only the files that are read here are downloaded, into its own cache:
  never code or pickles.

  Raises:
    InputError: neither a directory nor a model that the hub provides.
  """
  if str(path) == 'demo':
    return pathlib.Path(__file__).parent / 'demo'
  directory = pathlib.Path(path).expanduser()
  if str(path) and directory.is_dir():
    return directory
  if not _HUB_NAME.fullmatch(str(path)):
    raise errors.InputError(
      f'model.path {str(path)!r} is not a directory: give a local Hugging Face '
      "model directory, a hub name as 'owner/model', or 'demo'"
    )
  return _download(str(path))


@functools.cache
def _download(name: str) -> pathlib.Path:
  """Downloads once per process, so that all stages see the same revision."""
  patterns = ['config.json', 'generation_config.json', *TOKENIZER_FILES]
  patterns += [WEIGHTS, INDEX, 'model-*.safetensors']
  try:
    return pathlib.Path(
      huggingface_hub.snapshot_download(name, allow_patterns=patterns)
    )
  # The hub's library, its HTTP library and the disk have no common error.
  except Exception as error:
    line = ' '.join(str(error).split()) or type(error).__name__
    raise errors.InputError(
      f'model.path {name!r} is not a directory, and the Hugging Face hub does '
      f'not provide this model ({line}): correct the name, or download it on '
      'a machine with network access and give its directory'
    ) from None


def parse_dtype(name: Any) -> tuple[jnp.dtype, jnp.dtype]:
  """Dtypes of weights and of activations for a value of model.dtype.

  Raises:
    InputError: the value is unknown.
  """
  if name not in DTYPES:
    raise errors.unknown(f'model.dtype {name!r}', name, DTYPES)
  weights, activations = DTYPES[name]
  return jnp.dtype(weights), jnp.dtype(activations)


def check(path: Path) -> DecoderConfig:
  """Checks a model directory, reading only config.json and weight headers.

  Raises:
    InputError: a file is missing, unreadable or truncated; a tensor is
      missing, unknown, duplicate or has the wrong shape; the tokenizer is
      missing.
  """
  directory = resolve(path)
  config = config_json.read_config(directory)
  with _Weights(directory) as weights:
    weights.check(config)
  for name in TOKENIZER_FILES:
    diagnosis.refuse_pointer(directory / name)
  check_files(directory)
  return config


def rounding_note(path: Path, dtype: str) -> str:
  """A note if model.dtype has fewer bits than the file's weights, else ''."""
  weight_dtype, _ = parse_dtype(dtype)
  with _Weights(resolve(path)) as weights:
    wider = weights.has_float32 and weight_dtype.itemsize < 4
  if not wider:
    return ''
  return (
    f'the checkpoint is float32, and model.dtype={dtype} rounds its weights: '
    'scores differ from those of float32'
  )


def load_decoder(
  path: Path, dtype: str | jnp.dtype, mesh: jax.sharding.Mesh
) -> Decoder:
  """Reads a model directory into a decoder on the mesh.

  Args:
    path: see `resolve`.
    dtype: dtype of weights and activations, whatever the file's is, or
      'bfloat16_weights' for bfloat16 weights and float32 activations.
    mesh: the mesh to shard the weights over, by mesh.RULES.

  Raises:
    InputError: see `check`.
  """
  name = dtype if isinstance(dtype, str) else jnp.dtype(dtype).name
  weight_dtype, activation_dtype = parse_dtype(name)
  config = check(path)
  decoder = Decoder(
    config, rngs=None, dtype=weight_dtype, activation_dtype=activation_dtype
  )
  with _Weights(resolve(path)) as weights:
    weights.check_tied(config)
    loaded = [
      (
        path_in_decoder,
        variable.replace(
          jax.make_array_from_callback(
            variable.shape,
            sharding,
            weights.reader(
              path_in_decoder, variable.shape, config, weight_dtype
            ),
          )
        ),
      )
      for path_in_decoder, variable, sharding in placed(decoder, mesh)
    ]
    # Finishes all reads before the files are unmapped.
    jax.block_until_ready([variable[...] for _, variable in loaded])
  return nnx.merge(nnx.graphdef(decoder), nnx.from_flat_state(loaded))


def save_decoder(
  decoder: Decoder, path: Path, source: Path | None = None
) -> None:
  """Writes a model directory that transformers and `load_decoder` read.

  Args:
    decoder: the model, without adapters; `models.merged` folds them in.
    path: the directory, created if missing.
    source: the model directory that the decoder was loaded from; its
      config.json (with the dtype of these weights), generation_config.json and
      tokenizer are copied. None: config.json is made from decoder.config, and
      no tokenizer is written.
  """
  directory = pathlib.Path(path)
  directory.mkdir(parents=True, exist_ok=True)
  arrays = {}
  for path_in_decoder, variable in nnx.to_flat_state(
    nnx.state(decoder, nnx.Param)
  ):
    if path_in_decoder[-1] in ('lora_a', 'lora_b'):
      raise ValueError('the decoder has adapters: save models.merged(decoder)')
    arrays[path_in_decoder] = np.asarray(jax.device_get(variable[...]))
  # transformers rejects a file without the name of a framework.
  safetensors.numpy.save_file(
    tensors.to_checkpoint(arrays, decoder.config),
    directory / WEIGHTS,
    metadata={'format': 'pt'},
  )
  # safetensors writes files that only their owner can read.
  (directory / WEIGHTS).chmod(0o644)
  dtype = decoder.dtype.name
  if source is None:
    fields = config_json.to_json(decoder.config, dtype)
    ids = {name: fields[name] for name in ('bos_token_id', 'eos_token_id')}
    store.write_json(directory / 'generation_config.json', ids)
  else:
    source = resolve(source)
    fields = config_json.read_json_object(source / 'config.json')
    fields['dtype' if 'dtype' in fields else 'torch_dtype'] = dtype
    generation = source / 'generation_config.json'
    if generation.is_file():
      shutil.copyfile(generation, directory / generation.name)
    copy_tokenizer(source, directory)
  store.write_json(directory / 'config.json', fields)


def copy_tokenizer(source: pathlib.Path, directory: pathlib.Path) -> None:
  """Copies the tokenizer's files from one model directory to another."""
  for name in TOKENIZER_FILES:
    if (source / name).is_file():
      shutil.copyfile(source / name, directory / name)


def portable_name(path: Path) -> str:
  """The name by which other programs, in other folders, find the model.

  A name on the hub, also for a folder of the hub's cache; otherwise an absolute
  path.
  """
  directory = resolve(path)
  if directory.parent.name == 'snapshots':
    kind, *name = directory.parents[1].name.split('--')
    if kind == 'models' and _HUB_NAME.fullmatch('/'.join(name)):
      return '/'.join(name)
  return str(directory.resolve())


def hash_model(path: Path) -> str:
  """One hash over all files that affect the model's output.

  These are config, generation config, weights and tokenizer, but not README,
  licence or other files.
  """
  directory = resolve(path)
  names = ('config.json', 'generation_config.json', *TOKENIZER_FILES)
  files = [directory / name for name in names if (directory / name).is_file()]
  with _Weights(directory) as weights:
    files += weights.files
  return store.hash_files(files)


def end_ids(path: Path) -> tuple[int, ...]:
  """Ids that end generation: generation_config.json's, else config.json's."""
  directory = resolve(path)
  for name in ('generation_config.json', 'config.json'):
    file = directory / name
    if file.is_file():
      value = config_json.read_json_object(file).get('eos_token_id')
      if ids := config_json.parse_eos_ids(value, str(file)):
        return ids
  return ()


@functools.cache
def _shapes(config: DecoderConfig) -> dict[str, tuple[int, ...]]:
  """Name and shape of each tensor that a checkpoint must have.

  Cached, since every stage checks the model and building 80 layers takes
  seconds.
  """
  state = nnx.state(Decoder(config, rngs=None))
  parameters = {
    path: variable.shape for path, variable in nnx.to_flat_state(state)
  }
  return tensors.shapes(parameters, config)


class _Weights:
  """The open safetensors files of a directory, and the file of each tensor."""

  def __init__(self, directory: pathlib.Path):
    self._directory = directory
    self.files: list[pathlib.Path] = []
    self._open: dict[str, Any] = {}
    self._file_of: dict[str, Any] = {}
    if (directory / WEIGHTS).is_file():
      self._add(WEIGHTS)
    elif (directory / INDEX).is_file():
      self._add_index()
    elif any(next(directory.glob(p), None) for p in _PICKLES):
      diagnosis.refuse_adapter(directory)
      raise errors.InputError(
        f'{directory} has pickled weights only, which can run code and are '
        'not read: save the model as safetensors'
      )
    else:
      diagnosis.refuse_adapter(directory)
      raise errors.InputError(
        f'{directory} has no {WEIGHTS} and no {INDEX}, and other weights are '
        'not read: save the model as safetensors'
      )

  def __enter__(self) -> '_Weights':
    return self

  def __exit__(self, *unused: Any) -> None:
    self._file_of.clear()
    self._open.clear()

  @property
  def has_float32(self) -> bool:
    """Whether some tensor is float32."""
    dtypes = (f.get_slice(n).get_dtype() for n, f in self._file_of.items())
    return 'F32' in dtypes

  def check(self, config: DecoderConfig) -> None:
    """Compares names, shapes and dtypes with the decoder's."""
    diagnosis.refuse_foreign_prefix(self._directory, self._file_of)
    last = f'model.layers.{config.num_layers - 1}.'
    if not any(name.startswith(last) for name in self._file_of):
      # Checked first, so that a wrong number does not build that many layers.
      raise errors.InputError(
        f'{self._directory} has no tensors {last}*, but config.json has '
        f'{config.num_layers} layers'
      )
    expected = _shapes(config)
    head = 'lm_head.weight'
    known = dict(expected)
    if config.tied:
      known[head] = expected['model.embed_tokens.weight']
    found = [n for n in self._file_of if not n.endswith(_IGNORED_SUFFIXES)]
    self._refuse(
      'has no tensor', sorted(set(expected) - set(found), key=_by_number)
    )
    self._refuse(
      'has the unknown tensor', sorted(set(found) - set(known), key=_by_number)
    )
    for name in found:
      part = self._file_of[name].get_slice(name)
      shape = tuple(part.get_shape())
      if shape != known[name]:
        raise errors.InputError(
          f'{self._directory}: tensor {name} is {list(shape)}, config.json '
          f'says {list(known[name])}: they belong to different models'
        )
      if part.get_dtype() not in _FILE_DTYPES:
        raise errors.InputError(
          f'{self._directory}: tensor {name} is {part.get_dtype()}, not one '
          f'of {_FILE_DTYPES}: convert the weights'
        )

  def check_tied(self, config: DecoderConfig) -> None:
    """Rejects a tied checkpoint whose output layer differs."""
    head, embedding = 'lm_head.weight', 'model.embed_tokens.weight'
    if not config.tied or head not in self._file_of:
      return
    if not np.array_equal(
      self._file_of[head].get_tensor(head),
      self._file_of[embedding].get_tensor(embedding),
    ):
      raise errors.InputError(
        f'{self._directory}: config.json ties the output layer to the '
        f'embedding, but {head} differs: set tie_word_embeddings to false'
      )

  def reader(
    self,
    path: StatePath,
    shape: tuple[int, ...],
    config: DecoderConfig,
    dtype: jnp.dtype,
  ) -> Callable[[Any], np.ndarray]:
    """Returns a callback that reads one device's part of a parameter."""
    place = tensors.place(path, config)
    part = self._file_of[place.name].get_slice(place.name)

    def read(index: tuple[slice, ...]) -> np.ndarray:
      array = part[place.index(index, shape)].astype(dtype, copy=False)
      return array.T if place.transposed else array

    return read

  def _add_index(self) -> None:
    index = self._directory / INDEX
    weight_map = config_json.read_json_object(index).get('weight_map')
    if not isinstance(weight_map, dict) or not weight_map:
      raise errors.InputError(f'{index}: weight_map is missing')
    for file_name in weight_map.values():
      if not isinstance(file_name, str) or not _is_plain_name(file_name):
        raise errors.InputError(
          f'{index} names {file_name!r}: it may only name files next to it'
        )
      if file_name in self._open:
        continue
      if not (self._directory / file_name).is_file():
        raise errors.InputError(
          f'{index} names {file_name}, which does not exist: copy all shards'
        )
      self._add(file_name)
    for name, file_name in weight_map.items():
      if name not in self._file_of:
        raise errors.InputError(
          f'{self._directory / file_name} has no tensor {name}, which '
          f'{INDEX} places there'
        )
      if self._file_of[name] is not self._open[file_name]:
        raise errors.InputError(
          f'{index} places the tensor {name} in {file_name}, but another '
          'shard has it'
        )

  def _add(self, file_name: str) -> None:
    file = self._directory / file_name
    try:
      opened = safetensors.safe_open(file, framework='numpy')
    except (safetensors.SafetensorError, OSError) as error:
      diagnosis.refuse_pointer(file)
      raise errors.InputError(
        f'{file} is not a complete safetensors file ({error}): copy it again'
      ) from None
    self.files.append(file)
    self._open[file_name] = opened
    for name in opened.keys():  # noqa: SIM118 (no mapping)
      if name in self._file_of:
        raise errors.InputError(
          f'{self._directory} has the tensor {name} twice, once in {file_name}'
        )
      self._file_of[name] = opened

  def _refuse(self, what: str, names: list[str]) -> None:
    if names:
      more = f' and {len(names) - 1} more' if len(names) > 1 else ''
      raise errors.InputError(
        f'{self._directory} {what} {names[0]}{more}: config.json and weights '
        'must belong to the same model'
      )


def _is_plain_name(name: str) -> bool:
  return name not in ('', '.', '..') and not set(name) & set('/\\\0')


def _by_number(name: str) -> list[tuple[int, str]]:
  """Sort key that puts layer 2 before layer 10."""
  return [(int(p), '') if p.isdigit() else (-1, p) for p in name.split('.')]
