"""Small networks that end in parameters, values or corrections."""

import torch
from torch import nn

from merlin.networks.initialization import start_orthogonal
from merlin.networks.products import Linear


def mlp(
    input_size: int,
    hidden_sizes: tuple[int, ...],
    output_size: int,
    output_scale: float = 1.0,
    hidden_gain: float | None = None,
    activation: type[nn.Module] = nn.Tanh,
) -> nn.Sequential:
    """Return tanh layers of `hidden_sizes`, then a linear one, its initial weights multiplied by `output_scale`.

    Args:
        hidden_gain: Start the tanh layers orthogonal and this large; PyTorch's initial weights are almost linear.
        activation: Instead of tanh.
    """
    layers: list[nn.Module] = []
    for size in hidden_sizes:
        hidden = Linear(input_size, size)
        if hidden_gain is not None:
            start_orthogonal(hidden, hidden_gain)
        layers += [hidden, activation()]
        input_size = size
    output = Linear(input_size, output_size)
    with torch.no_grad():
        output.weight.mul_(output_scale)
        output.bias.zero_()
    return nn.Sequential(*layers, output)
