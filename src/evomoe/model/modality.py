"""Which token is image, which is text, which is padding.

Implements: Eq. 6 (tau).

The model notes the modality once per forward pass; every MoE layer of that pass reads it (``forward_pass``).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from evomoe.model.without_waiting import places, places_of_kinds

OfRows = Callable[[Tensor | None], Tensor]
"""Scores (N, E) of the tokens whose indices (N,) it is given, or of all tokens for None."""


@dataclass(frozen=True)
class Modality:
    """The kind of every token of one forward pass.

    Attributes:
        is_image_T: (T,) bool over the T real (unpadded) tokens, in reading order of the flattened batch: True for image or
            video tokens, False for text.
        position_T: (T,) int64, where each real token stands in the flattened (batch * sequence); None when all are real.
        shape: (batch, sequence) of the pass.
        on_cpu_T: ``is_image_T`` in the memory of the CPU, if it is there already.
    """

    is_image_T: Tensor
    position_T: Tensor | None
    shape: tuple[int, int]
    on_cpu_T: Tensor | None = None

    @cached_property
    def tokens(self) -> tuple[Tensor, Tensor]:
        """(V,) and (T - V,) int64: indices of the image tokens and of the text tokens among the real tokens."""
        return places_of_kinds(self.is_image_T if self.on_cpu_T is None else self.on_cpu_T, self.is_image_T.device)

    def scored_by(self, image: OfRows, text: OfRows, both: bool) -> Tensor:
        """The scores (T, E) of the image tokens by one network and of the text tokens by another.

        Args:
            image, text: the networks.
            both: also run the network that has no tokens: DDP waits for its gradients.
        """
        if not both and not all(map(len, self.tokens)):  # one modality only, as in every decoding step: nothing to gather
            return (image if len(self.tokens[0]) else text)(None)
        scores_TE = torch.cat([image(self.tokens[0]), text(self.tokens[1])])
        return torch.zeros_like(scores_TE).index_copy(0, torch.cat(self.tokens), scores_TE)

    def real(self, hidden_BSD: Tensor) -> Tensor:
        """The hidden states of the real tokens, (T, D)."""
        hidden_ND = hidden_BSD.reshape(-1, hidden_BSD.shape[-1])
        if hidden_ND.shape[0] != self.shape[0] * self.shape[1]:
            raise ValueError(
                f"An MoE layer received {hidden_ND.shape[0]} tokens, but the forward pass announced "
                f"{self.shape[0]} x {self.shape[1]}. This model changes the sequence between its inputs and its "
                "decoder; pass `modality=` to its forward."
            )
        return hidden_ND if self.position_T is None else hidden_ND[self.position_T]

    def restore(self, out_TD: Tensor, like_BSD: Tensor) -> Tensor:
        """Puts the real tokens' outputs (T, D) back in place, (B, S, D); padding becomes zero."""
        if self.position_T is None:
            return out_TD.view(like_BSD.shape)
        out_ND = out_TD.new_zeros(like_BSD.numel() // like_BSD.shape[-1], out_TD.shape[-1])
        return out_ND.index_copy(0, self.position_T, out_TD).view(like_BSD.shape)

    @classmethod
    def of(cls, is_image_BS: Tensor, is_real_BS: Tensor | None) -> "Modality":
        """Builds the note from two (batch, sequence) masks; ``is_real_BS`` None means that no token is padding."""
        is_image_N, shape = is_image_BS.reshape(-1), (is_image_BS.shape[0], is_image_BS.shape[1])
        if is_real_BS is None:
            return cls(is_image_N, None, shape)
        on_cpu_N, is_real_N = torch.stack([is_image_N, is_real_BS.reshape(-1)]).cpu()  # the one time that a pass waits for a GPU
        if is_real_N.all():
            return cls(is_image_N, None, shape, on_cpu_N)
        position_T = places(is_real_N, is_image_N.device)
        return cls(is_image_N[position_T], position_T, shape, on_cpu_N[is_real_N])


def modality_of_inputs(
    image_token_ids: Sequence[int],
    input_ids: Tensor | None,
    inputs_embeds: Tensor | None,
    attention_mask: Tensor | dict[str, Tensor] | None,
    embed_tokens: Callable[[Tensor], Tensor],
    past_length: int = 0,
    kind: "type[Modality]" = Modality,
) -> Modality:
    """Reads the modality of each token off a model's inputs.

    Args:
        image_token_ids: ids of image and video placeholders.
        input_ids: (B, S) int64, or None if ``inputs_embeds`` is given.
        inputs_embeds: (B, S, D). Image tokens are then the positions that equal a placeholder's embedding, which is how
            transformers itself finds them. Embeddings into which the picture is merged already look like text: pass
            ``modality=`` to the model's forward for those.
        attention_mask: (B, past + S) with 0 for padding, or a ready (B, 1, S, past + S) mask or dict of such masks.
        embed_tokens: the model's input embedding.
        past_length: tokens in the cache before this pass.
        kind: what to make.
    """
    if input_ids is not None:
        is_image_BS = torch.zeros_like(input_ids, dtype=torch.bool)
        for token in image_token_ids:
            is_image_BS |= input_ids == token
    elif inputs_embeds is not None:
        is_image_BS = torch.zeros(inputs_embeds.shape[:2], dtype=torch.bool, device=inputs_embeds.device)
        for token in image_token_ids:
            placeholder_D = embed_tokens(torch.tensor(token, device=inputs_embeds.device)).to(inputs_embeds.dtype)
            is_image_BS |= (inputs_embeds == placeholder_D).all(-1)
    else:
        raise ValueError("The model needs `input_ids` or `inputs_embeds`.")
    return kind.of(is_image_BS, _is_real(attention_mask, is_image_BS.shape[1], past_length))


def _is_real(attention_mask: Tensor | dict[str, Tensor] | None, length: int, past_length: int) -> Tensor | None:
    if isinstance(attention_mask, dict):
        attention_mask = attention_mask.get("full_attention", next(iter(attention_mask.values()), None))
    if attention_mask is None:
        return None
    if attention_mask.ndim == 2:
        return attention_mask[:, -length:] != 0
    # A ready-made mask: a real token sees itself. Additive masks hold 0 where attention is allowed. The keys of a growing or
    # static cache start with the past; a sliding one holds the newest keys at its end.
    first = min(past_length, attention_mask.shape[-1] - length)
    itself_BS = attention_mask[:, 0].diagonal(offset=first, dim1=-2, dim2=-1)
    return itself_BS if itself_BS.dtype == torch.bool else itself_BS == 0
