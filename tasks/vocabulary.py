"""The words of the medical world, and the tokenizer that reads them: one token per word, two per entity name.

Names are a first and a second syllable. Which of the 1,600 combinations are held out is a fixed rule, so a held-out name is a
combination that no training text contains, of syllables that all of them do: it can be copied, but not remembered.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from tasks.prompting import TAGS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

FIRST_SYLLABLES = tuple(consonant + vowel for consonant in "bdklmnrt" for vowel in "aeiou")
# The consonants differ from those of the first syllables, so that a name splits in one way only.
SECOND_SYLLABLES = tuple(
    consonant + vowel + last for consonant, last in zip("vzspxhjw", "nlrxmtkb", strict=True) for vowel in "aeiou"
)

RELATIONS = ("disease-cause", "gene-inhibitor", "drug-exclusion", "drug-dose")
# From the strongest to the weakest; the evidence level of a publication type is its place here, counted from 1.
PUBLICATION_TYPES = ("meta-analysis", "rct", "trial", "cohort", "case", "opinion")
LETTERS = ("A", "B", "C", "D")

PAD, UNKNOWN, END, USER, ASSISTANT = "<pad>", "<unk>", "<eos>", "<user>", "<assistant>"
LINE_END = "."
_WORDS = ("then", "for", "kg", "mg", "?", LINE_END, "*", "=", "list")
_DIGITS = tuple("0123456789")

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}" + USER + " {{ message['content'] }} "
    "{% else %}" + ASSISTANT + " {{ message['content'] }} {% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}" + ASSISTANT + "{% endif %}"
)


def names(*, held_out: bool, share: float) -> list[str]:
    """The names for training worlds, or those kept back for held-out worlds, in a fixed random order."""
    combinations = [first + second for first in FIRST_SYLLABLES for second in SECOND_SYLLABLES]
    random.Random(7).shuffle(combinations)  # the split is part of the world's definition, so its seed never changes
    kept_back = round(share * len(combinations))
    return combinations[:kept_back] if held_out else combinations[kept_back:]


def vocabulary() -> list[str]:
    """Every token, in the order of its id."""
    return [
        PAD, UNKNOWN, END, USER, ASSISTANT, *TAGS, *RELATIONS, *PUBLICATION_TYPES, *_WORDS,
        *(f"({letter})" for letter in LETTERS), *_DIGITS, *(f"##{digit}" for digit in _DIGITS),
        *FIRST_SYLLABLES, *(f"##{syllable}" for syllable in SECOND_SYLLABLES),
    ]  # fmt: skip


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A fast Hugging Face tokenizer over `vocabulary()` that decodes back to the very text it read.

    Example:
        >>> tokenizer = build_tokenizer()
        >>> tokenizer.decode(tokenizer.encode("drug-dose lavan rct 42 ."))
        'drug-dose lavan rct 42 .'
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    ids = {token: i for i, token in enumerate(vocabulary())}
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token=UNKNOWN, continuing_subword_prefix="##"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    # The protocol's tags are ordinary tokens, not "special" ones: decoding must never hide a tag that the model wrote.
    tokenizer.add_tokens([AddedToken(tag, normalized=False, special=False) for tag in (*TAGS, USER, ASSISTANT)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, unk_token=UNKNOWN, eos_token=END, clean_up_tokenization_spaces=False
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast
