"""Positions of a whole sequence, counted as `generate` counts them."""

import inspect

import torch


def position_ids(model, input_ids, attention_mask) -> torch.Tensor | None:
    """What `generate` passes as position_ids for rows [B, T] of prompt and tokens; None for a model that takes none.

    Models with learned positions that are given none count padding too, and so score other positions than were drawn.
    """
    if model.config.is_encoder_decoder or "position_ids" not in inspect.signature(model.forward).parameters:
        return None
    return model._prepare_position_ids_for_generation(input_ids, {"attention_mask": attention_mask})
