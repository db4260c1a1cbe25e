"""What is taken when nothing is said; the command's help reads it without loading the functions."""

from __future__ import annotations

EVAL_CTX = 2048  # tokens per chunk
EVAL_SECONDS = 60  # of decoding, for all chunks together, unless it is said how many
N_TOKENS = 128  # to generate
DEPTHS = (0, 4096, 16384)  # tokens in the cache, as far as the model's context goes
CHAT_CTX = 4096  # tokens of a conversation, or the model's if that is less
CHAT_TOKENS = 512  # of one answer
