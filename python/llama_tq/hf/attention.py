"""Attention on the packed cache, by the name ``llama_tq`` in transformers' attention interface."""

from __future__ import annotations

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from .. import torch as operators
from .side import Packed

NAME = "llama_tq"


def attention_forward(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor | Packed,
    value: torch.Tensor | Packed,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    position_bias: torch.Tensor | None = None,
    output_attentions: bool = False,
    **kwargs,
) -> tuple[torch.Tensor, None]:
    """Attend to a packed cache; where keys and values are ordinary tensors, this is transformers' ``sdpa``.

    :param query: ``(batch, heads, tokens, head)``
    :param key: what a :class:`TurboQuantLayer` returned
    :param value: likewise
    :param attention_mask: bool or float, ``(batch, 1, tokens, rows)``, or None
    :param s_aux: score of a sink for each head, ``(heads)``
    :returns: ``(batch, tokens, heads, value head)``, and None for the weights, which are never made
    :raises ValueError: dropout, a bias by position, or the weights are asked for
    """
    if not isinstance(key, Packed):
        extras = {"softcap": softcap, "s_aux": s_aux, "position_bias": position_bias}
        kwargs |= {name: extra for name, extra in extras.items() if extra is not None}
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, is_causal, **kwargs
        )
    for name, asked in (
        ("dropout", dropout != 0),
        ("a position bias", position_bias is not None),
        ("output_attentions", output_attentions),
    ):
        if asked:
            raise ValueError(f"attention on a packed cache has no {name}; use attn_implementation='eager'")
    if is_causal is None:
        is_causal = getattr(module, "is_causal", True)
    tokens, total = query.shape[2], key.shape[2]
    past = total - tokens if attention_mask is None and is_causal and tokens > 1 else None
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    result, lse = _attend(query, key, value, attention_mask, past, scale, softcap or 0.0)
    if s_aux is not None:
        result = result * torch.sigmoid(lse - s_aux.float())[..., None].to(result.dtype)
    return result, None


def _attend(
    query: torch.Tensor,
    key: Packed,
    value: Packed,
    mask: torch.Tensor | None,
    past: int | None,
    scale: float,
    softcap: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """As :func:`llama_tq.torch.attention`, over the packed rows and those in full precision."""
    packed = key.rows.shape[2]
    head = None if mask is None else mask[..., :packed]
    options = (key.type, value.type, head, past, scale, softcap)
    if not key.tail.shape[2]:
        return operators.attention(query, key.rows, value.rows, *options)
    if past is not None:
        seen = torch.arange(key.tail.shape[2], device=query.device) + packed
        token = torch.arange(query.shape[2], device=query.device)
        tail = (seen <= past + token[:, None])[None, None]
    else:
        tail = None if mask is None else mask[..., packed:]
    newest = _attend_plain(query, key.tail, value.tail, tail, scale, softcap)
    if not packed:
        return newest
    return _join(operators.attention(query, key.rows, value.rows, *options), newest)


def _attend_plain(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scale: float,
    softcap: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    groups = query.float().unflatten(1, (key.shape[1], -1))  # batch, kv head, head of its group, token
    scores = torch.einsum("bkgtd,bkrd->bkgtr", groups, key.float()).flatten(1, 2) * scale
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    lse = scores.logsumexp(-1)
    weights = torch.exp(scores - lse[..., None]).nan_to_num(0.0).unflatten(1, (key.shape[1], -1))
    result = torch.einsum("bkgtr,bkrd->bkgtd", weights, value.float()).flatten(1, 2)
    return result.transpose(1, 2).to(query.dtype), lse.transpose(1, 2)


def _join(
    a: tuple[torch.Tensor, torch.Tensor], b: tuple[torch.Tensor, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention over the rows of both."""
    total = torch.logaddexp(a[1], b[1])
    parts = (result * torch.exp(lse - total)[..., None].nan_to_num(0.0) for result, lse in (a, b))
    return sum(parts).to(a[0].dtype), total


AttentionInterface.register(NAME, attention_forward)
AttentionMaskInterface.register(NAME, sdpa_mask)
