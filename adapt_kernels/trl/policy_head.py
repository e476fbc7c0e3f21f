"""A head in the place of the model's own: hidden states in, `linear_policy_loss` or plain log-probs out."""

import functools
import inspect
import types
from dataclasses import dataclass

import torch

from adapt_kernels.hf.positions import position_ids
from adapt_kernels.ops.linear_policy_loss import linear_policy_loss
from adapt_kernels.ops.lm_head import LmHead
from adapt_kernels.ops.token_logprobs import token_logprobs


def add_policy_head(model, float32: bool = False) -> None:
    """Make `model(..., policy_head=head)` return `head(hidden states, weight, bias)`; other calls are unchanged.

    The head runs in the forward of the output embeddings, inside the model's: there wrappers (DDP, FSDP) have their
    weights ready and see them used, and PEFT's wrappers give the weight they compute with. It is passed as an object
    because wrappers cast and copy tensors among arguments. Without position_ids, those of `generate` are passed on.

    TRL's fused head is taken away: it holds the model it was made for, so that copies would compute with its weights.
    A copy of the model has the head too, on its own weights; a pickle is the model without it.

    float32: other calls project in float32 as well, autocast or not. Raises ValueError for a model without a head, or
    with an adapter on it.
    """
    embeddings = model.get_output_embeddings()
    if embeddings is None:
        raise ValueError(f"{type(model).__name__} has no output embeddings to train: a causal language model is needed")
    if hasattr(embeddings, "base_layer"):
        raise ValueError(
            f"the output embeddings carry an adapter of their own ({type(embeddings).__name__}), whose weight is no"
            " plain matrix: leave them out of target_modules, or train them by modules_to_save or"
            " trainable_token_indices"
        )
    # Set once: a second trainer finds the head of the first one there.
    vars(model).setdefault("_forward_under_head", _without_trl(vars(model).get("forward"), type(model)))
    model.forward = types.MethodType(_forward_of(type(model)), model)
    if not isinstance(found := vars(embeddings).get("forward"), functools.partial) or found.func is not _project:
        # TRL's projection in float32 is a closure over its module.
        embeddings._forward_under_head = None if float32 else found
    embeddings._projects_in_float32 = float32
    # A partial, not a method: those are pickled by the name of their function.
    embeddings.forward = functools.partial(_project, embeddings)


def _without_trl(forward, model_class):
    """The forward that a model had of its own, beside its class's, before TRL put its fused head over it; or None."""
    function = getattr(forward, "__func__", None)
    closure = inspect.getclosurevars(function).nonlocals if inspect.isfunction(function) else {}
    replaced = closure.get("original_forward")
    forward = forward if replaced is None else replaced
    return None if getattr(forward, "__func__", None) is model_class.forward else forward


def _forward_of(model_class):
    # Nothing of the instance in here, or copies would share it. `generate` reads the signature.
    @functools.wraps(model_class.forward)
    def forward(self, *args, policy_head=None, **kwargs):
        if policy_head is None:
            own = self._forward_under_head
            return type(self).forward(self, *args, **kwargs) if own is None else own(*args, **kwargs)
        kwargs.pop("labels", None)  # PEFT passes None
        hidden = backbone(self)(*args, use_cache=False, **_positioned(self, kwargs)).last_hidden_state
        return self.get_output_embeddings()(hidden, policy_head=policy_head)

    return forward


def _project(embeddings, hidden, policy_head=None):
    if policy_head is not None:
        return policy_head(hidden, embeddings.weight, getattr(embeddings, "bias", None))
    if embeddings._projects_in_float32:
        bias = getattr(embeddings, "bias", None)
        with torch.autocast(hidden.device.type, enabled=False):
            bias = None if bias is None else bias.float()
            return torch.nn.functional.linear(hidden.float(), embeddings.weight.float(), bias)
    own = embeddings._forward_under_head
    return type(embeddings).forward(embeddings, hidden) if own is None else own(hidden)


def backbone(model):
    """The model below its head. Raises ValueError where it cannot be told."""
    below = model.base_model
    if below is model:  # base_model_prefix names a part of a larger model
        below = getattr(model, "model", model)
    if below is model:
        raise ValueError(f"{type(model).__name__} does not tell its head from what is below: no loss can go there")
    return below


def _positioned(model, kwargs: dict) -> dict:
    ids, mask = kwargs.get("input_ids"), kwargs.get("attention_mask")
    # Virtual tokens make the mask wider, and PEFT generates without position ids then.
    if kwargs.get("position_ids") is not None or ids is None or mask is None or mask.shape != ids.shape:
        return kwargs
    positions = position_ids(model, ids, mask)
    return kwargs if positions is None else {**kwargs, "position_ids": positions}


@dataclass
class PolicyHead:
    """Loss of one micro-batch of B rows with T completion tokens; row arguments are [B, T] as `policy_loss` has them.

    gate: position of the mode token in the completion. mode_ids: ids of the modes, [M]. margin_weights: [B], c times
    the weight of each row's penalty. lm_head: `logit_settings` of the model. kl_weights: [B], of each row's KL term.
    kl_on_mode: whether the mode token has one.
    """

    ids: torch.Tensor
    old_logprobs: torch.Tensor
    advantages: torch.Tensor
    mask: torch.Tensor
    kinds: torch.Tensor
    weights: torch.Tensor
    ref_logprobs: torch.Tensor | None
    gate: int
    mode_ids: torch.Tensor | None
    margin_weights: torch.Tensor
    lm_head: dict
    settings: dict
    kl_weights: torch.Tensor | None = None
    kl_on_mode: bool = True

    def __call__(self, hidden, weight, bias) -> dict:
        """{"loss": scalar, "logprobs", "entropy", "ratio", "clipped": [B, T]} from the hidden states [B, P + T, D]."""
        hidden, head = before(hidden, self.ids, weight, bias, self.lm_head)
        with torch.autocast(hidden.device.type, enabled=False):
            loss, out = self._with_kl(hidden, head)
            if self.mode_ids is not None:
                logits = mode_logits(hidden[:, self.gate], head, self.mode_ids).to(loss.dtype)
                loss = loss + (self.margin_weights.to(logits.dtype) * mode_spread(logits)).sum()
        return {"loss": loss, **out}

    def _with_kl(self, hidden, head: LmHead) -> tuple[torch.Tensor, dict]:
        everywhere = self.kl_on_mode or self.ref_logprobs is None
        if self.kl_weights is not None:  # once without the KL term, and that alone with its own weights
            loss, out = self._loss(hidden, head, kl_coef=0.0)
            weights = self.weights * self.kl_weights[:, None]
            if not everywhere:
                weights[:, self.gate] = 0
            alone = {"kinds": torch.zeros_like(self.kinds), "weights": weights, "entropy_coef": 0.0}
            return loss + self._loss(hidden, head, **alone)[0], out
        if everywhere:
            return self._loss(hidden, head)
        at_mode = torch.zeros_like(self.mask)
        at_mode[:, self.gate] = True
        loss, out = self._loss(hidden, head, mask=self.mask & ~at_mode)
        mode_loss, mode = self._loss(hidden, head, mask=self.mask & at_mode, kl_coef=0.0)
        return loss + mode_loss, {name: torch.where(at_mode, mode[name], out[name]) for name in out}

    def _loss(self, hidden, head: LmHead, **settings) -> tuple[torch.Tensor, dict]:
        given = {"mask": self.mask, "kinds": self.kinds, "weights": self.weights, **self.settings, **settings}
        out = linear_policy_loss(
            hidden,
            head.weight,
            self.ids,
            self.old_logprobs,
            self.advantages,
            ref_logprobs=self.ref_logprobs,
            bias=head.bias,
            softcap=head.softcap,
            logit_scale=head.logit_scale,
            **given,
        )
        return out.loss, {name: getattr(out, name) for name in ("logprobs", "entropy", "ratio", "clipped")}


@dataclass
class LogprobHead:
    """Log-probs of B rows' T completion tokens, without a gradient. lm_head: `logit_settings` of the model.

    entropy: give that of each token's distribution too.
    """

    ids: torch.Tensor
    mask: torch.Tensor
    temperature: float
    lm_head: dict
    entropy: bool = False

    def __call__(self, hidden, weight, bias) -> torch.Tensor:
        """[B, T] float32 from the hidden states [B, P + T, D], [B, T, 2] with the entropy; 0 without the mask."""
        hidden, head = before(hidden, self.ids, weight, bias, self.lm_head)
        hidden, ids = hidden.flatten(0, 1), self.ids.flatten()
        scores = torch.zeros((*self.ids.shape, 1 + self.entropy), dtype=torch.float32, device=ids.device)
        with torch.no_grad(), torch.autocast(hidden.device.type, enabled=False):
            for rows in head.chunks(self.mask.flatten().nonzero()[:, 0], None):
                logits = head.project(hidden[rows])
                divisor = head.divisor(self.temperature)
                logprobs, entropy = token_logprobs(logits, ids[rows], temperature=divisor, entropy=self.entropy)
                found = [logprobs] if entropy is None else [logprobs, entropy]
                scores.flatten(0, 1)[rows] = torch.stack(found, 1).float()
        return scores if self.entropy else scores[..., 0]


def before(hidden, ids, weight, bias, lm_head: dict) -> tuple[torch.Tensor, LmHead]:
    """The hidden states [B, T, D] that predict the ids [B, T] which end the rows, and the head, in one dtype."""
    dtype = hidden.dtype
    if lm_head["float32"]:
        dtype = torch.float32
    elif torch.is_autocast_enabled(hidden.device.type):
        dtype = torch.get_autocast_dtype(hidden.device.type)
    weight, bias = (None if x is None else x[: lm_head["columns"]].to(dtype) for x in (weight, bias))
    head = LmHead(weight, bias, lm_head["softcap"], lm_head["logit_scale"])
    return hidden[:, -ids.shape[1] - 1 : -1].to(dtype), head


def mode_logits(hidden, head: LmHead, mode_ids) -> torch.Tensor:
    """[B, M] logits of the modes alone, of hidden states [B, D]."""
    bias = None if head.bias is None else head.bias[mode_ids]
    logits = torch.nn.functional.linear(hidden, head.weight[mode_ids], bias)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) * head.logit_scale
    return head.softcap * torch.tanh(logits / head.softcap) if head.softcap else logits


def mode_spread(logits: torch.Tensor) -> torch.Tensor:
    """[B] from the modes' logits [B, M]: 2 sum_m (logit_m - mean)^2, the squared difference where there are two."""
    return 2 * (logits - logits.mean(-1, keepdim=True)).square().sum(-1)
