"""Learned duplicate removal: a factor in (0, 1) for every object score (Hu et al. 2018)."""

import flax.linen as nn
import jax.numpy as jnp

from fnet_jax.layers import Linear
from fnet_jax.relation import RelationModule


class DuplicateRemoval(nn.Module):
    """sigmoid(linear(ReLU(relation module(linear(object) + rank embedding))))."""

    dim: int
    num_ranks: int
    geometry: str

    @nn.compact
    def __call__(self, objects, probabilities, boxes, mask):
        """(R, D), (R,) class probability, (R, 4), (R,) bool -> factor (R,) float32.

        Used slots must come first. The embedding is looked up by the *output of argsort*, not by
        each object's rank, because the published weights were trained so.
        """
        if objects.shape[0] > self.num_ranks:
            raise ValueError(
                f"{objects.shape[0]} objects, but only {self.num_ranks} rank embeddings"
            )
        visual = Linear(self.dim, name="visual")(objects)
        order = jnp.argsort(jnp.where(mask, probabilities, -1.0), stable=True, descending=True)
        ranks = nn.Embed(
            self.num_ranks,
            self.dim,
            embedding_init=nn.initializers.normal(1.0),
            name="rank_embedding",
        )(order)
        relation = RelationModule(self.dim // 2, self.dim, self.geometry, name="relation")(
            visual + ranks, boxes, mask
        )
        return nn.sigmoid(Linear(1, name="rescore")(nn.relu(relation)))[:, 0]
