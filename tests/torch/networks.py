"""A network to prune, and its training."""

import torch
from torch import nn


class Block(nn.Module):
    """Two layers and a sum."""

    def __init__(self, width):
        super().__init__()
        self.first = nn.Linear(width, width)
        self.second = nn.Linear(width, width)

    def forward(self, x):
        return x + self.second(self.first(x).relu())


class Network(nn.Module):
    """A convolution, two blocks and a head."""

    def __init__(self, width=8):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3)
        self.conv = nn.Conv2d(width, width, 3)
        self.blocks = nn.Sequential(Block(width), Block(width))
        self.head = nn.Linear(width, 5)

    def forward(self, x):
        return self.head(self.blocks(self.conv(self.stem(x).relu()).mean((2, 3))))


def steps(model, optimizer, count=3, **to):
    for _ in range(count):
        optimizer.zero_grad()
        model(torch.randn(4, 3, 8, 8, **to)).square().sum().backward()
        optimizer.step()


BLOCKS = [f"blocks.{i}.{layer}.weight" for i in range(2) for layer in ("first", "second")]
