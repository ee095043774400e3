"""Tokenizers and chat templates in the manner of the families that people use.

Small ones, made here: each has the parts of its family that decide how the text
around messages becomes tokens.
"""

import dataclasses
import json
import pathlib

import tokenizers
from tokenizers import (
  decoders,
  normalizers,
  pre_tokenizers,
  processors,
  trainers,
)

TEXTS = [
  'The quick brown fox jumps over the lazy dog, and then it sleeps.',
  'Why is the sky blue? Because the air scatters blue light the most.',
  'user assistant system model Yes. No. Paris is the capital of France.',
  'Today 26 Jul 2024, the name and the answer:  two spaces\n\nand lines\n',
] * 3

CHATML = (
  "{% for m in messages %}{% if loop.first and m.role != 'system' %}"
  "{{ '<|im_start|>system\\nYou are helpful.<|im_end|>\\n' }}{% endif %}"
  "{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}"
  '{% endfor %}'
  "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
# An empty block of reasoning in the last turn, none in earlier ones.
QWEN3 = """
{%- for m in messages %}
  {%- if m.role != 'assistant' %}
    {{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}
  {%- else %}
    {%- set content, reasoning = m.content, '' %}
    {%- if '</think>' in content %}
      {%- set reasoning = content.split('</think>')[0].rstrip('\\n') %}
      {%- set reasoning = reasoning.split('<think>')[-1].lstrip('\\n') %}
      {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
    {%- endif %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if loop.last %}
      {{- '<think>\\n' + reasoning.strip('\\n') + '\\n</think>\\n\\n' }}
    {%- endif %}
    {{- content.lstrip('\\n') + '<|im_end|>\\n' }}
  {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
  {{- '<|im_start|>assistant\\n' }}
  {%- if enable_thinking is defined and enable_thinking is false %}
    {{- '<think>\\n\\n</think>\\n\\n' }}
  {%- endif %}
{%- endif %}
"""
LLAMA2 = (
  "{% for m in messages %}{% if m.role == 'user' %}"
  "{{ bos_token + '[INST] ' + m.content.strip() + ' [/INST]' }}{% else %}"
  "{{ ' ' + m.content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
LLAMA3 = """
{{- bos_token }}
{%- if not date_string is defined %}
  {%- set date_string = strftime_now('%d %b %Y') %}
{%- endif %}
{{- '<|start_header_id|>system<|end_header_id|>\\n\\n' }}
{{- 'Today ' + date_string + '<|eot_id|>' }}
{%- for m in messages %}
  {{- '<|start_header_id|>' + m.role + '<|end_header_id|>\\n\\n' }}
  {{- m.content | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
  {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""
GEMMA = (
  "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}"
  "{{ raise_exception('System role not supported') }}{% endif %}"
  "{% set role = 'model' if m.role == 'assistant' else m.role %}"
  "{{ '<start_of_turn>' + role + '\\n' + m.content | trim }}"
  "{{ '<end_of_turn>\\n' }}"
  '{% endfor %}'
  "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
)
MISTRAL = (
  "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}"
  "{{ '[INST] ' + m.content + '[/INST]' }}{% else %}"
  "{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}"
)
PHI3 = (
  "{% for m in messages %}{{ '<|' + m.role + '|>\\n' }}"
  "{{ m.content + '<|end|>\\n' }}"
  "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}"
  '{% else %}{{ eos_token }}{% endif %}'
)
R1 = (
  "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}"
  "{{ '<｜User｜>' + m.content }}{% else %}"
  "{% set content = m.content.split('</think>')[-1] %}"
  "{{ '<｜Assistant｜>' + content + '<｜end▁of▁sentence｜>' }}"
  '{% endif %}{% endfor %}'
  "{% if add_generation_prompt %}{{ '<｜Assistant｜><think>\\n' }}{% endif %}"
)
# Its role markers are not tokens.
ZEPHYR = (
  "{% for m in messages %}{{ '<|' + m.role + '|>\\n' + m.content }}"
  "{{ eos_token + '\\n' }}"
  '{% endfor %}'
  "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)


@dataclasses.dataclass(frozen=True)
class ChatModel:
  """A family's chat format.

  Attributes:
    kind: 'byte_level' | 'llama2' | 'metaspace' | 'gemma', the tokenizer.
    template: the chat template.
    special: special tokens; the first is BOS, the second EOS.
    plain: added tokens that are not marked as special.
    end: the token that ends a turn.
    fixed: what the template writes before an answer after the generation
      prompt.
    has_bos: whether the tokenizer adds BOS.
    rstrip: added tokens that swallow white space after them.
  """

  kind: str
  template: str
  special: tuple[str, ...]
  end: str
  plain: tuple[str, ...] = ()
  fixed: str = ''
  has_bos: bool = False
  rstrip: tuple[str, ...] = ()


IM = ('<|im_start|>', '<|im_end|>')
HEADERS = ('<|start_header_id|>', '<|end_header_id|>', '<|eot_id|>')
CHAT_MODELS = {
  'qwen2.5': ChatModel(
    'byte_level', CHATML, ('<|endoftext|>', *IM), IM[1], ('<|fim_prefix|>',)
  ),
  'smollm2': ChatModel('byte_level', CHATML, IM, IM[1]),
  'qwen3': ChatModel(
    'byte_level',
    QWEN3,
    ('<|endoftext|>', *IM),
    IM[1],
    ('<think>', '</think>'),
    '<think>\n\n</think>\n\n',
  ),
  'llama2': ChatModel('llama2', LLAMA2, ('<s>', '</s>'), '</s>', has_bos=True),
  'llama3': ChatModel(
    'byte_level',
    LLAMA3,
    ('<|begin_of_text|>', '<|end_of_text|>', *HEADERS),
    '<|eot_id|>',
    has_bos=True,
  ),
  'gemma2': ChatModel(
    'gemma',
    GEMMA,
    ('<bos>', '<eos>'),
    '<end_of_turn>',
    ('<start_of_turn>', '<end_of_turn>', '\n\n', '▁▁', '<table>'),
    has_bos=True,
  ),
  'mistral': ChatModel(
    'metaspace',
    MISTRAL,
    ('<s>', '</s>', '[INST]', '[/INST]'),
    '</s>',
    has_bos=True,
  ),
  'phi3': ChatModel(
    'llama2',
    PHI3,
    ('<s>', '<|endoftext|>', '<|user|>', '<|assistant|>', '<|end|>'),
    '<|end|>',
    ('</s>',),
    rstrip=('<|user|>', '<|assistant|>', '<|end|>', '</s>'),
  ),
  'r1': ChatModel(
    'byte_level',
    R1,
    ('<｜begin▁of▁sentence｜>', '<｜end▁of▁sentence｜>'),
    '<｜end▁of▁sentence｜>',
    ('<｜User｜>', '<｜Assistant｜>', '<think>', '</think>'),
    has_bos=True,
  ),
  'zephyr': ChatModel('llama2', ZEPHYR, ('<s>', '</s>'), '</s>', has_bos=True),
}


def make_tokenizer(model: ChatModel) -> tokenizers.Tokenizer:
  """A small tokenizer of the model's kind, trained on TEXTS."""
  specials = ['<unk>', *model.special]
  if model.kind == 'byte_level':
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    specials = specials[1:]
  else:
    alphabet = []
    specials += [f'<0x{i:02X}>' for i in range(256)]
  tokenizer = tokenizers.Tokenizer(
    tokenizers.models.BPE(
      byte_fallback=model.kind != 'byte_level',
      fuse_unk=True,
      unk_token=None if model.kind == 'byte_level' else '<unk>',
    )
  )
  _set_parts(tokenizer, model.kind)
  tokenizer.train_from_iterator(
    TEXTS,
    trainers.BpeTrainer(
      vocab_size=500 + len(alphabet),
      special_tokens=specials,
      initial_alphabet=alphabet,
      show_progress=False,
      max_token_length=8,
    ),
  )
  # The trainer makes the bytes special as well.
  fields = json.loads(tokenizer.to_str())
  fields['added_tokens'] = [
    {**token, 'rstrip': token['content'] in model.rstrip}
    for token in fields['added_tokens']
    if not token['content'].startswith('<0x')
  ]
  tokenizer = tokenizers.Tokenizer.from_str(json.dumps(fields))
  tokenizer.add_tokens(
    [
      tokenizers.AddedToken(
        token, normalized=False, rstrip=token in model.rstrip
      )
      for token in model.plain
    ]
  )
  if model.has_bos:
    bos = model.special[0]
    tokenizer.post_processor = processors.TemplateProcessing(
      single=f'{bos} $A',
      special_tokens=[(bos, tokenizer.token_to_id(bos))],
    )
  return tokenizer


def _set_parts(tokenizer: tokenizers.Tokenizer, kind: str) -> None:
  if kind == 'byte_level':
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return
  parts = [decoders.Replace('▁', ' '), decoders.ByteFallback(), decoders.Fuse()]
  if kind == 'llama2':
    tokenizer.normalizer = normalizers.Sequence(
      [normalizers.Prepend('▁'), normalizers.Replace(' ', '▁')]
    )
    parts.append(decoders.Strip(' ', 1, 0))
  elif kind == 'metaspace':
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(
      prepend_scheme='first', split=False
    )
    parts.append(decoders.Strip(' ', 1, 0))
  else:
    tokenizer.normalizer = normalizers.Replace(' ', '▁')
  tokenizer.decoder = decoders.Sequence(parts)


def write(model: ChatModel, path: pathlib.Path) -> pathlib.Path:
  """A model directory with all but weights."""
  path.mkdir()
  tokenizer = make_tokenizer(model)
  tokenizer.save(str(path / 'tokenizer.json'))
  bos, eos = map(tokenizer.token_to_id, model.special[:2])
  config = {
    'architectures': ['LlamaForCausalLM'],
    'vocab_size': tokenizer.get_vocab_size(),
    'hidden_size': 8,
    'intermediate_size': 8,
    'num_hidden_layers': 1,
    'num_attention_heads': 2,
    'max_position_embeddings': 512,
    'rms_norm_eps': 1e-5,
    'bos_token_id': bos,
    'eos_token_id': eos,
  }
  (path / 'config.json').write_text(json.dumps(config))
  settings = {
    'tokenizer_class': 'PreTrainedTokenizerFast',
    'bos_token': model.special[0],
    'eos_token': model.special[1],
    'chat_template': model.template,
  }
  (path / 'tokenizer_config.json').write_text(json.dumps(settings))
  return path
