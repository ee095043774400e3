"""The tiny models of scripts/make_goldens.py: unusual config values."""

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


def _llama3_rope(original_context: int) -> dict[str, str | float]:
  return {
    'rope_type': 'llama3',
    'rope_theta': 50.0,
    'factor': 5.0,
    'low_freq_factor': 1.25,
    'high_freq_factor': 4.0,
    'original_max_position_embeddings': original_context,
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
    'dtype': 'float32',
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
    'dtype': 'bfloat16',
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
    'dtype': 'float16',
    'form': 4,
  },
  # With theta 50 and head_dim 16 the wavelengths are 6 to 190 positions: some
  # below 40 / 4, some between, some above 40 / 1.25.
  'llama3_v5': {
    'fields': {
      'vocab_size': 64,
      'head_dim': 16,
      'tie_word_embeddings': True,
      'rope_parameters': _llama3_rope(40),
    },
    'length': 72,
    'dtype': 'bfloat16',
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
    'dtype': 'float16',
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
    'dtype': 'bfloat16',
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
    'dtype': 'bfloat16',
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
    'dtype': 'bfloat16',
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
    'dtype': 'bfloat16',
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
    'dtype': 'bfloat16',
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
    'dtype': 'bfloat16',
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
    'dtype': 'bfloat16',
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
      'rope_parameters': _llama3_rope(12),
    },
    'length': 20,
    'dtype': 'bfloat16',
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
    'dtype': 'bfloat16',
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
    'dtype': 'bfloat16',
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
    'dtype': 'bfloat16',
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
    'dtype': 'bfloat16',
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
    'dtype': 'bfloat16',
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
    'dtype': 'bfloat16',
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
    'dtype': 'bfloat16',
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
    'dtype': 'bfloat16',
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
