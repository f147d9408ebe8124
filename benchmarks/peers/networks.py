"""The networks of ``models/`` as a PyTorch user would write them, with the weights of an ONNX model.

Each has a ``stem``, ``blocks`` and a ``head``, so that the blocks, which are alike, can be compiled once.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional

from .weights import Source, Weights


class Network(nn.Module):  # type: ignore[misc,unused-ignore]
    """A stem, equal blocks, a head.

    Attributes:
        inputs: Names of the model's inputs, in the order in which `forward` takes them.
    """

    def __init__(
        self, inputs: tuple[str, ...], stem: nn.Module, blocks: list[nn.Module], head: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.inputs = inputs
        self.stem, self.blocks, self.head = stem, nn.Sequential(*blocks), head or nn.Identity()

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        """Of the inputs the model's one output."""
        return self.head(self.blocks(self.stem(*inputs)))


class Attention(nn.Module):  # type: ignore[misc,unused-ignore]
    """Multi-head self-attention (N, S, hidden); queries, keys and values of one Linear or of three."""

    def __init__(self, inner: list[nn.Linear], out: nn.Linear, *, heads: int) -> None:
        super().__init__()
        self.inner, self.out, self.heads = nn.ModuleList(inner), out, heads

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """See the class."""
        batch, length, hidden = x.shape
        shape = (batch, length, self.heads, hidden // self.heads)
        parts = [part for layer in self.inner for part in layer(x).split(hidden, dim=-1)]
        queries, keys, values = (part.view(shape).transpose(1, 2) for part in parts)
        mixed = functional.scaled_dot_product_attention(queries, keys, values)
        return self.out(mixed.transpose(1, 2).reshape(batch, length, hidden))


class FeedForward(nn.Module):  # type: ignore[misc,unused-ignore]
    """Linear, exact GELU, Linear."""

    def __init__(self, wide: nn.Linear, narrow: nn.Linear) -> None:
        super().__init__()
        self.wide, self.narrow = wide, narrow

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """See the class."""
        return self.narrow(functional.gelu(self.wide(x)))


class BertEmbeddings(nn.Module):  # type: ignore[misc,unused-ignore]
    """The sum of three embeddings, normalised."""

    def __init__(self, weights: Weights) -> None:
        super().__init__()
        at = "embeddings"
        self.words, self.positions, self.types = (
            weights.embedding(f"{at}.{kind}_embeddings.weight") for kind in ("word", "position", "token_type")
        )
        self.norm = weights.layer_norm(f"{at}.LayerNorm")

    def forward(self, ids: torch.Tensor, types: torch.Tensor) -> torch.Tensor:
        """(N, S), (N, S) to (N, S, hidden)."""
        return self.norm(self.words(ids) + self.types(types) + self.positions.weight[: ids.shape[1]])


class BertLayer(nn.Module):  # type: ignore[misc,unused-ignore]
    """Attention and feed-forward, each added to its input and normalised after."""

    def __init__(self, weights: Weights, at: str, *, heads: int, merged: bool) -> None:
        super().__init__()
        names = [f"{at}.attention.self.{part}.weight" for part in ("query", "key", "value")]
        inner = [weights.linear(*names)] if merged else [weights.linear(name) for name in names]
        out = weights.linear(f"{at}.attention.output.dense.weight")
        self.attention = Attention(inner, out, heads=heads)
        self.norm_1 = weights.layer_norm(f"{at}.attention.output.LayerNorm")
        wide, narrow = (weights.linear(f"{at}.{part}.dense.weight") for part in ("intermediate", "output"))
        self.feed_forward = FeedForward(wide, narrow)
        self.norm_2 = weights.layer_norm(f"{at}.output.LayerNorm")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, S, hidden)."""
        x = self.norm_1(self.attention(x) + x)
        return self.norm_2(self.feed_forward(x) + x)


def bert(source: Source, *, merged: bool = False) -> Network:
    """BERT without mask and pooler: ids and types (N, S) to (N, S, hidden).

    Args:
        source: A model of ``models.bert``.
        merged: Queries, keys and values of one Linear.
    """
    weights = Weights(source)
    heads = int(weights.array("heads_shape")[2])
    blocks = [
        BertLayer(weights, at, heads=heads, merged=merged)
        for at in weights.blocks("encoder.layer.{}/output.dense.weight")
    ]
    if weights.inputs != ("input_ids", "token_type_ids"):
        raise ValueError(f"a BERT with the inputs {', '.join(weights.inputs)}")
    return Network(weights.inputs, BertEmbeddings(weights), blocks)


class ViTEmbeddings(nn.Module):  # type: ignore[misc,unused-ignore]
    """Patches projected, the class token before them, positions added."""

    def __init__(self, weights: Weights) -> None:
        super().__init__()
        self.project = weights.conv("conv_proj")
        self.token = weights.parameter("class_token")
        self.positions = weights.parameter("encoder.pos_embedding")

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(N, 3, H, W) to (N, 1 + patches, hidden)."""
        patches = self.project(images).flatten(2).transpose(1, 2)
        return torch.cat([self.token.expand(len(images), -1, -1), patches], dim=1) + self.positions


class ViTLayer(nn.Module):  # type: ignore[misc,unused-ignore]
    """Attention and feed-forward, each normalised before and added to its input."""

    def __init__(self, weights: Weights, at: str, *, heads: int) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = weights.layer_norm(f"{at}.ln_1"), weights.layer_norm(f"{at}.ln_2")
        inner, out = (weights.linear(f"{at}.self_attention.{name}") for name in ("in_proj_weight", "out_proj.weight"))
        self.attention = Attention([inner], out, heads=heads)
        self.feed_forward = FeedForward(*(weights.linear(f"{at}.mlp.{part}.weight") for part in (0, 3)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, S, hidden)."""
        x = x + self.attention(self.norm_1(x))
        return x + self.feed_forward(self.norm_2(x))


class FirstToken(nn.Module):  # type: ignore[misc,unused-ignore]
    """The class token, normalised and projected to logits."""

    def __init__(self, norm: nn.LayerNorm, head: nn.Linear) -> None:
        super().__init__()
        self.norm, self.head = norm, head

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, S, hidden) to (N, classes)."""
        return self.head(self.norm(x[:, 0]))


def vit(source: Source) -> Network:
    """A vision transformer: images (N, 3, H, W) to logits (N, classes). Its projections are of one Linear as it is.

    Args:
        source: A model of ``models.vit``.
    """
    weights = Weights(source)
    heads = int(weights.array("heads_shape")[2])
    places = weights.blocks("encoder.layers.encoder_layer_{}/mlp.0.weight")
    blocks = [ViTLayer(weights, at, heads=heads) for at in places]
    head = FirstToken(weights.layer_norm("encoder.ln"), weights.linear("heads.head.weight"))
    return Network(weights.inputs, ViTEmbeddings(weights), blocks, head)


class LLMLayer(nn.Module):  # type: ignore[misc,unused-ignore]
    """RMSNorm and SwiGLU, added to the input."""

    def __init__(self, weights: Weights, at: str, *, merged: bool) -> None:
        super().__init__()
        names = [f"{at}.mlp.{part}_proj.weight" for part in ("gate", "up")]
        inner = [weights.linear(*names)] if merged else [weights.linear(name) for name in names]
        self.inner, self.down = nn.ModuleList(inner), weights.linear(f"{at}.mlp.down_proj.weight")
        self.gain = weights.parameter(f"{at}.post_attention_layernorm.weight")
        self.epsilon, self.width = float(weights.array("epsilon")), self.down.in_features

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, S, hidden)."""
        normal = functional.rms_norm(x, (x.shape[-1],), self.gain, self.epsilon)
        gate, up = (part for layer in self.inner for part in layer(normal).split(self.width, dim=-1))
        return x + self.down(functional.silu(gate) * up)


def llm(source: Source, *, merged: bool = False) -> Network:
    """Feed-forward blocks of a language model: (N, S, hidden) to the same.

    Args:
        source: A model of ``models.llm``.
        merged: The projections "gate" and "up" are one Linear.
    """
    weights = Weights(source)
    places = weights.blocks("model.layers.{}/mlp.down_proj.weight")
    return Network(weights.inputs, nn.Identity(), [LLMLayer(weights, at, merged=merged) for at in places])


class ResNeXtStem(nn.Module):  # type: ignore[misc,unused-ignore]
    """A convolution of 7x7 pixels and a maximum of 3x3."""

    def __init__(self, weights: Weights) -> None:
        super().__init__()
        self.conv = weights.conv("conv1", norm="bn1")

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(N, 3, H, W) to (N, C, H / 4, W / 4)."""
        return functional.max_pool2d(functional.relu(self.conv(images)), 3, stride=2, padding=1)


class ResNeXtBlock(nn.Module):  # type: ignore[misc,unused-ignore]
    """1x1, grouped 3x3, 1x1, and the sum with the input."""

    def __init__(self, weights: Weights, at: str) -> None:
        super().__init__()
        self.conv_1, self.conv_2, self.conv_3 = (
            weights.conv(f"{at}.conv{part}", norm=f"{at}.bn{part}") for part in (1, 2, 3)
        )
        is_first = f"{at}.downsample.0.weight" in weights
        self.shortcut = weights.conv(f"{at}.downsample.0", norm=f"{at}.downsample.1") if is_first else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W)."""
        y = functional.relu(self.conv_1(x))
        y = functional.relu(self.conv_2(y))
        return functional.relu(self.conv_3(y) + self.shortcut(x))


class Pooled(nn.Module):  # type: ignore[misc,unused-ignore]
    """The mean over all pixels, projected to logits."""

    def __init__(self, head: nn.Linear) -> None:
        super().__init__()
        self.head = head

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) to (N, classes)."""
        return self.head(functional.adaptive_avg_pool2d(x, 1).flatten(1))


def resnext(source: Source) -> Network:
    """A ResNeXt with BatchNormalization folded: images (N, 3, H, W) to logits (N, classes).

    Args:
        source: A model of ``models.resnext``.
    """
    weights = Weights(source)
    blocks = [
        ResNeXtBlock(weights, at)
        for stage in (1, 2, 3, 4)
        for at in weights.blocks(f"layer{stage}.{{}}/conv1.weight")
    ]
    return Network(weights.inputs, ResNeXtStem(weights), blocks, Pooled(weights.linear("fc.weight")))


MERGEABLE: dict[str, Callable[..., Network]] = {"bert-base": bert, "bert-large": bert, "llm-block": llm}
"""By the recipe's name; those whose model has projections of one value apart."""
NETWORKS: dict[str, Callable[..., Network]] = {
    **MERGEABLE, "vit-base": vit, "vit-h": vit, "resnext50": resnext, "resnext101": resnext
}  # fmt: skip


def network_for(name: str, model: Source, *, merged: bool = False) -> Network:
    """The network of a recipe.

    Args:
        name: As `models.get` takes it.
        model: The model that was made of it, in float32, pruned or not.
        merged: Projections of one value are one Linear, also where the model has them apart.
    """
    options = {"merged": merged} if name in MERGEABLE else {}
    network: Network = NETWORKS[name](model, **options)
    network.eval()
    return network
