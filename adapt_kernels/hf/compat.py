"""Hugging Face's names that differ between the transformers releases we support."""

from transformers.generation.utils import ALL_CACHE_NAMES

# The cache as an argument, a model input and an output field: "past_key_values" up to 5.23, "cache" from 5.24 on.
CACHE = ALL_CACHE_NAMES[0]
