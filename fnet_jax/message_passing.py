"""Spatially-weighted message passing between objects and subgraphs (F-Net, sec. 3.3)."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from fnet_jax.layers import GroupDropout, Linear
from fnet_jax.relation import RelationModule

INIT_STD = 0.01


def masked_softmax(logits, mask):
    """Softmax over the last axis among entries where `mask` holds; all zero where none does."""
    top = jnp.max(jnp.where(mask, logits, -jnp.inf), axis=-1, keepdims=True)
    top = jax.lax.stop_gradient(jnp.where(jnp.isfinite(top), top, 0.0))
    weights = jnp.where(mask, jnp.exp(jnp.where(mask, logits - top, 0.0)), 0.0)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    return weights / jnp.where(total > 0.0, total, 1.0)


class MessagePassing(nn.Module):
    """One step: both directions read the step's input, both outputs are residual sums.

    With `relation_module` (arch v4s) objects also hear from each other.
    """

    dim_object: int
    dim_subgraph: int
    dim_attention: int
    relation_module: bool
    geometry: str
    use_bias: bool
    dropout: float
    dtype: str = "float32"

    @nn.compact
    def __call__(self, objects, subgraphs, boxes, object_mask, incidence, *, train: bool = False):
        """Exchanges one round of messages.

        Args:
          objects: (R, D) float32 object vectors.
          subgraphs: (K, P, P, D) float32 subgraph maps.
          boxes: (R, 4) float32 pixels, for the relation module.
          object_mask: (R,) bool.
          incidence: (K, R) bool, which objects take part in which subgraph.
          train: whether dropout is on.

        Returns: (objects, subgraphs), updated, same shapes.
        """

        def transform(name, features, x):
            y = Linear(features, INIT_STD, self.use_bias, self.dtype, name=name)(nn.relu(x))
            return GroupDropout(self.dropout, name=f"{name}_dropout")(y, train=train)

        num_subgraphs, pool = subgraphs.shape[:2]
        num_objects = objects.shape[0]
        # Scales a factor, not the product: a backend may fuse a multiplication of logits with the
        # subtraction of their maximum, and such a difference rounds to more than 0, whose
        # exponential overflows once logits are large.
        scale = np.float32(1.0 / np.sqrt(self.dim_attention))

        # Subgraph -> object: one softmax over all positions of all subgraphs of the object.
        query = transform("subgraph_to_object_query", self.dim_attention, objects)  # (R, M)
        key = transform("subgraph_to_object_key", self.dim_attention, subgraphs)  # (K, P, P, M)
        logits = (query * scale) @ key.reshape(-1, self.dim_attention).T  # (R, K*P*P)
        connected = jnp.broadcast_to(
            incidence.T[:, :, None], (num_objects, num_subgraphs, pool * pool)
        ).reshape(num_objects, -1)
        attention = masked_softmax(logits, connected)
        gathered = attention @ subgraphs.reshape(-1, subgraphs.shape[-1])  # (R, D)
        message = transform("subgraph_to_object_out", self.dim_object, gathered)
        new_objects = objects + message
        if self.relation_module:
            new_objects = new_objects + RelationModule(
                self.dim_object // 2, self.dim_object, self.geometry, INIT_STD, name="relation"
            )(objects, boxes, object_mask)

        # Object -> subgraph: at every position, a softmax over the objects of the subgraph.
        query = transform("object_to_subgraph_query", self.dim_attention, subgraphs)  # (K, P, P, M)
        key = transform("object_to_subgraph_key", self.dim_attention, objects)  # (R, M)
        logits = query @ (key * scale).T  # (K, P, P, R)
        attention = masked_softmax(logits, incidence[:, None, None, :])
        gathered = attention @ objects  # (K, P, P, D)
        message = transform("object_to_subgraph_out", self.dim_subgraph, gathered)
        return new_objects, subgraphs + message
