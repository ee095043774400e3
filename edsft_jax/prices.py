"""What answers cost."""

import dataclasses

import ml_collections


@dataclasses.dataclass(frozen=True)
class Prices:
  """The prices of an answer, in any currency; 0.0 where none is set.

  Attributes:
    per_answer: for each answer.
    per_word: for each word of its prompt.
  """

  per_answer: float
  per_word: float

  @classmethod
  def of(cls, config: ml_collections.ConfigDict) -> 'Prices':
    """The prices of a study."""
    c = config.annotation
    return cls(c.price_per_answer, c.price_per_word)

  def __bool__(self) -> bool:
    """Whether a price is set."""
    return self.per_answer > 0 or self.per_word > 0

  def total(self, answers: int, words: float) -> float:
    """The cost of answers to prompts with this many words in total."""
    return self.per_answer * answers + self.per_word * words
