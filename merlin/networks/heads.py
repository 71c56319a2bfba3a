"""Small networks that end in parameters, values or corrections."""

import torch
from torch import nn


def mlp(input_size: int, hidden_sizes: tuple[int, ...], output_size: int, output_scale: float = 1.0) -> nn.Sequential:
    """Return tanh layers of `hidden_sizes`, then a linear one, its initial weights multiplied by `output_scale`."""
    layers: list[nn.Module] = []
    for size in hidden_sizes:
        layers += [nn.Linear(input_size, size), nn.Tanh()]
        input_size = size
    output = nn.Linear(input_size, output_size)
    with torch.no_grad():
        output.weight.mul_(output_scale)
        output.bias.zero_()
    return nn.Sequential(*layers, output)
