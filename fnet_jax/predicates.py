"""Spatially-sensitive relation inference (F-Net, sec. 3.4).

A predicate from subject, object and subgraph.
"""

import flax.linen as nn

from fnet_jax.layers import GroupDropout, Linear

INIT_STD = 0.01


class PredicateInference(nn.Module):
    """Restores relationships from the factors.

    `project` runs once per object and per subgraph, `infer` once per pair: what is shared by the
    many pairs of a subgraph is computed once.
    """

    dim_attention: int
    dim_predicate: int
    fusion: str  # "sum" | "prod" | "sum_prod"
    bottleneck: bool
    use_bias: bool
    dropout: float
    dtype: str = "float32"

    def setup(self):
        def linear(features, name=None):
            return Linear(features, INIT_STD, self.use_bias, self.dtype, name=name)

        self.subject = linear(self.dim_attention)
        self.object = linear(self.dim_attention)
        self.subgraph = linear(self.dim_attention)
        if self.bottleneck:
            self.bottleneck_conv = linear(self.dim_attention // 2, "bottleneck")
        self.fc = linear(self.dim_predicate)
        self.drop = GroupDropout(self.dropout)

    def project(self, objects, subgraphs, *, train: bool = False):
        """(R, D), (K, P, P, D) -> subject (R, M), object (R, M), subgraph (K, P, P, M) terms."""
        objects, subgraphs = nn.relu(objects), nn.relu(subgraphs)
        subgraph = self.drop(self.subgraph(subgraphs), train=train)
        return self.subject(objects), self.object(objects), subgraph

    def infer(self, subject, object_, subgraph, *, train: bool = False):
        """Rows of the three terms -> phrase vectors.

        (N, M), (N, M), (N, P, P, M) -> (N, dim_predicate).
        """
        subject, object_ = subject[:, None, None], object_[:, None, None]
        if self.fusion == "sum":
            x = subgraph + subject + object_
        elif self.fusion == "prod":
            x = subgraph * subject * object_
        else:
            x = subgraph * (subject + object_)
        x = nn.relu(x)
        if self.bottleneck:
            x = nn.relu(self.drop(self.bottleneck_conv(x), train=train))
        x = x.reshape(x.shape[0], -1)  # (N, P*P*channels)
        return self.drop(self.fc(x), train=train)
