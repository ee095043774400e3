"""The files of a workdir, through which stages pass on their results.

Every stage reads the files of earlier stages and writes its own through this
package. Files are written atomically, and the manifest records what each stage
was made from, so a second run skips what is done and rejects changed inputs.
"""

from edsft_jax.store.checksums import (
  checksum_differences,
  record_checksums,
  unknown_files,
)
from edsft_jax.store.evaluations import read_evaluation
from edsft_jax.store.features import (
  feature_files,
  hash_features,
  read_features,
)
from edsft_jax.store.files import (
  append_jsonl,
  read_appended,
  read_cell,
  read_json,
  read_jsonl,
  read_parquet,
  refuse_damaged,
  replacing,
  reporting_full_disk,
  write_json,
  write_jsonl,
  write_npy,
  write_parquet,
  write_rows,
  write_text,
)
from edsft_jax.store.hashes import hash_file, hash_files, hash_json
from edsft_jax.store.manifest import (
  Manifest,
  StageRecord,
  changed,
  plain,
  refuse_change,
  refuse_other_inputs,
  versions,
)
from edsft_jax.store.prompts import (
  Message,
  Prompt,
  Prompts,
  Scalar,
  known_answers,
  prompt_table,
  read_prompts,
  read_responses,
  response_table,
)
from edsft_jax.store.remote import local
from edsft_jax.store.rounds import Round, earlier_rounds, round_of
from edsft_jax.store.text import csv_records, damage, is_unicode
from edsft_jax.store.workdir import (
  Run,
  Workdir,
  claimed,
  has_scheme,
  locked,
  locked_together,
  open_workdir,
  require,
)

__all__ = [
  'Manifest',
  'Message',
  'Prompt',
  'Prompts',
  'Round',
  'Run',
  'Scalar',
  'StageRecord',
  'Workdir',
  'append_jsonl',
  'changed',
  'checksum_differences',
  'claimed',
  'csv_records',
  'damage',
  'earlier_rounds',
  'feature_files',
  'has_scheme',
  'hash_features',
  'hash_file',
  'hash_files',
  'hash_json',
  'is_unicode',
  'known_answers',
  'local',
  'locked',
  'locked_together',
  'open_workdir',
  'plain',
  'prompt_table',
  'read_appended',
  'read_cell',
  'read_evaluation',
  'read_features',
  'read_json',
  'read_jsonl',
  'read_parquet',
  'read_prompts',
  'read_responses',
  'record_checksums',
  'refuse_change',
  'refuse_damaged',
  'refuse_other_inputs',
  'replacing',
  'reporting_full_disk',
  'require',
  'response_table',
  'round_of',
  'unknown_files',
  'versions',
  'write_json',
  'write_jsonl',
  'write_npy',
  'write_parquet',
  'write_rows',
  'write_text',
]
