"""How layers start, where PyTorch's usual weights would be too small, too large or too linear."""

from torch import nn


def start_at_scale(convolutions: nn.Module, linear: nn.Linear) -> None:
    """Keep the variance of what is seen through convolutions and ReLUs, and let the tanh after `linear` bend it.

    With PyTorch's initial weights a ball in the place of a key would change a grid's encoding by 0.004, a fortieth of
    what never changes in it; policies hardly learn from that. He et al. 2015, arXiv:1502.01852.
    """
    for layer in convolutions.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    start_orthogonal(linear, 3.0)


def start_orthogonal(linear: nn.Linear, gain: float) -> None:
    """Let what comes in go out `gain` times as long, whatever the widths. Saxe et al. 2013, arXiv:1312.6120."""
    nn.init.orthogonal_(linear.weight, gain)
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)


def start_balanced(linear: nn.Linear, parts: list[tuple[int, int]], gain: float) -> None:
    """Let every part of what comes in count the same at first, so that a wide picture does not drown a reward.

    Args:
        parts: Width and square length of each.
    """
    start = 0
    for width, square_length in parts:
        std = gain * (len(parts) * square_length) ** -0.5
        nn.init.normal_(linear.weight[:, start : start + width], std=std)
        start += width
    assert start == linear.in_features


def start_neutral(head: nn.Sequential) -> None:
    """Start a head's last layer at 0, so that at first it says the same of everything."""
    last = head[-1]
    assert isinstance(last, nn.Linear)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)


def start_glorot(module: nn.Module) -> None:
    """Start linear layers uniform by their widths, and biases at 0. Glorot and Bengio 2010."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
