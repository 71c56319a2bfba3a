"""Texts, as token ids."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from merlin import distributed
from merlin.networks.entries import EntryDecoder, EntryEncoder, count, num_rows
from merlin.networks.products import Linear
from merlin.networks.spaces import Tokens, shape_of


class TextEncoder(EntryEncoder):
    """Token embeddings through a GRU; the output at the last token before the padding, 0 for an empty text."""

    def __init__(self, space: Tokens, features: int):
        super().__init__()
        self.embedding = nn.Embedding(len(space.vocabulary), features)
        self.gru = nn.GRU(features, features, batch_first=True)
        self.output_size = features

    def forward(self, value: Tensor) -> Float[Tensor, "*batch E"]:
        if not value.numel():  # which a GRU refuses
            return self.embedding.weight.new_zeros(*value.shape[:-1], self.output_size)
        texts, inverse = distinct_rows(value.reshape(-1, value.shape[-1]).long())
        lengths = lengths_of(texts)
        if texts.device.type == "cpu" and not torch.compiler.is_compiling():  # a GPU's host would have to wait
            texts = texts[:, : max(1, int(lengths.max()))]
        outputs, _ = self.gru(self.embedding(texts))
        last = outputs[torch.arange(texts.shape[0], device=texts.device), (lengths - 1).clamp(min=0)]
        encodings = last * (lengths > 0).unsqueeze(-1)
        return encodings[inverse].reshape(*value.shape[:-1], -1)


class TextDecoder(EntryDecoder):
    """Logits linear in the latent (why: see CategoryDecoder), each position on its own; cross-entropy per token.

    The first padding counts, for it says where the text ends; what follows it does not.
    """

    def __init__(self, space: Tokens, input_size: int):
        size = shape_of(space)[0] * len(space.vocabulary)
        super().__init__(space, size)
        self.vocabulary_size = len(space.vocabulary)
        self.linear = Linear(input_size, size)

    def forward(self, latent: Float[Tensor, "*batch Z"]) -> Float[Tensor, "*batch P"]:
        return self.linear(latent)

    def nats(self, parameters: Float[Tensor, "*batch P"], value: Tensor) -> Float[Tensor, "*batch"]:
        log_probs = self._logits(parameters).log_softmax(-1).gather(-1, value.long().unsqueeze(-1)).squeeze(-1)
        return -(log_probs * is_said(value)).sum(-1)

    def accuracy(self, parameters: Float[Tensor, "*batch P"], value: Tensor) -> Float[Tensor, "*batch"]:
        said = is_said(value)
        return ((self._logits(parameters).argmax(-1) == value) & said).sum(-1) / said.sum(-1)

    def mode(self, parameters: Float[Tensor, "*batch P"]) -> Tensor:
        tokens = self._logits(parameters).argmax(-1)
        return tokens * is_said(tokens)

    def means(self, value: Tensor, counts: Bool[Tensor, "*batch"] | None = None) -> Float[Tensor, " M"]:
        texts = value.reshape(-1, value.shape[-1]).long()
        starts = torch.arange(self.shape[0], device=texts.device) * self.vocabulary_size
        if counts is not None:
            counts = counts.flatten()
        outside = self.shape[0] * self.vocabulary_size  # one more column takes what is not counted
        columns = torch.where(is_said(texts), texts + starts, outside)
        return distributed.total(count(columns, outside + 1, counts))[:-1] / num_rows(value, self.shape, counts)

    def worth_nats(self, means: Float[Tensor, " M"]) -> Float[Tensor, ""]:
        said = means.unflatten(0, (*self.shape, self.vocabulary_size))
        length = said.sum(-1, keepdim=True)  # how often a position holds a token or the first padding
        return (torch.special.entr(said / length.clamp(min=1e-30)) * length).sum()

    def _logits(self, parameters: Tensor) -> Float[Tensor, "*batch L V"]:
        return parameters.unflatten(-1, (-1, self.vocabulary_size))


def lengths_of(texts: Int[Tensor, "*batch L"]) -> Int[Tensor, "*batch"]:
    """Return how many tokens come before the first padding."""
    return ((texts == 0).long().cumsum(-1) == 0).sum(-1)


def is_said(texts: Int[Tensor, "*batch L"]) -> Bool[Tensor, "*batch L"]:
    """Return which positions hold a token or the first padding."""
    return torch.arange(texts.shape[-1], device=texts.device) <= lengths_of(texts).unsqueeze(-1)


def distinct_rows(texts: Int[Tensor, "M L"]) -> tuple[Int[Tensor, "D L"], Int[Tensor, "M"]]:
    """Return the distinct texts of a batch, and for each text which of them it is.

    An instruction stays for a whole episode, so that a window of 1,280 steps holds a handful of texts. On a GPU all
    texts come back as they are: finding the distinct ones would make the host wait. So they do where a program is
    compiled or exported, whose shapes cannot depend on what is in the texts.
    """
    if texts.device.type != "cpu" or torch.compiler.is_compiling():
        return texts, torch.arange(texts.shape[0], device=texts.device)
    return torch.unique(texts, dim=0, return_inverse=True)
