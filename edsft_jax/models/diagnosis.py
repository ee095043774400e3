"""Names what a directory holds instead of the files of a model."""

from collections.abc import Iterable
import pathlib
import re

from edsft_jax import errors

ADAPTER_CONFIG = 'adapter_config.json'
_POINTER = b'version https://git-lfs'
# In every layer of every family.
_USUAL = 'layers.0.self_attn.o_proj.weight'
_PREFIX = 'model.'
_SAVE = 'save it with save_pretrained of its AutoModelForCausalLM'
# AutoModelForCausalLM keeps the other parts.
SAVE_TEXT = (
  'save its language model alone: make its ...ForCausalLM from '
  'config.text_config, set model to model.language_model and lm_head to '
  'lm_head of the whole, and call save_pretrained'
)
_OF_PEFT = (
  'of a PEFT model: merge its adapter by merge_and_unload(), and save the '
  'result'
)
# Tensors of adapters, and of what they adapt.
_ADAPTED = re.compile(r'\.(lora_\w+|base_layer)\.')
_MULTIMODAL = f'they are a part of a multimodal model: {SAVE_TEXT}'
# Prefix of the tensors' names -> where it comes from and what to do.
_FOREIGN = {
  '': f'they are those of a model without an output layer: {_SAVE}',
  'language_model.': _MULTIMODAL,
  'language_model.model.': _MULTIMODAL,
  'model.language_model.': _MULTIMODAL,
  '_orig_mod.model.': 'they are those of a module made by torch.compile: save '
  'its _orig_mod',
  'module.model.': 'they are those of a wrapper for several devices: save its '
  'module',
  'base_model.model.model.': f'they are those {_OF_PEFT}',
}


def refuse_pointer(file: pathlib.Path) -> None:
  """Refuses a file that only points to one in Git LFS.

  Raises:
    InputError: it does.
  """
  try:
    with file.open('rb') as opened:
      start = opened.read(len(_POINTER))
  except OSError:
    return
  if start == _POINTER:
    raise errors.InputError(
      f'{file} is a Git LFS pointer, not the file itself: run git lfs pull in '
      'its folder'
    )


def refuse_adapter(directory: pathlib.Path) -> None:
  """Refuses a directory with a PEFT adapter and no model.

  Raises:
    InputError: it is one.
  """
  if (directory / ADAPTER_CONFIG).is_file():
    raise errors.InputError(
      f'{directory} is a PEFT adapter ({ADAPTER_CONFIG}) without its model: '
      'merge it into the model by merge_and_unload(), and save the result'
    )


def refuse_foreign_prefix(
  directory: pathlib.Path, names: Iterable[str]
) -> None:
  """Refuses tensors of PEFT, and names that do not start with "model."

  Args:
    directory: named in the error.
    names: of all tensors.

  Raises:
    InputError: they do.
  """
  names = list(names)
  for name in names:
    if _ADAPTED.search(name):
      raise errors.InputError(
        f'{directory} has the tensor {name}: it is that {_OF_PEFT}'
      )
  found = {n.removesuffix(_USUAL) for n in names if n.endswith(_USUAL)}
  if not found or _PREFIX in found:
    return
  prefix = min(found)
  remedy = _FOREIGN.get(
    prefix, f'rename them, or load the model with transformers, and {_SAVE}'
  )
  raise errors.InputError(
    f'{directory} has tensors {prefix}layers.* instead of {_PREFIX}layers.*: '
    f'{remedy}'
  )
