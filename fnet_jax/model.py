"""Factorizable Net: the learned parts and nothing else (no sampling, losses, decoding or metrics).

Three stages, which training and detection join with what lies between them:
`features` and `rpn_outputs` (pixels -> proposals), `graph` (objects and subgraphs -> refined
vectors) and `predicates` (pairs -> predicate logits). One image per call; `jax.vmap` or `jax.pmap`
for more.
"""

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from fnet_jax.anchors import STRIDE
from fnet_jax.backbone import VGG16
from fnet_jax.duplicates import DuplicateRemoval
from fnet_jax.kernels import roi_align
from fnet_jax.layers import Conv3x3, GroupDropout, Linear
from fnet_jax.message_passing import MessagePassing
from fnet_jax.predicates import PredicateInference
from fnet_jax.rpn import RPNHead

# Parameters are the same for every image; a small one makes them quickly.
PARAM_SHAPE_IMAGE = (32, 32, 3)


@flax.struct.dataclass
class GraphOutputs:
    """What the network knows of the objects after message passing, and the terms of its pairs."""

    objects: jax.Array  # (R, D) object vectors, no final ReLU
    object_logits: jax.Array  # (R, C)
    box_deltas: jax.Array  # (R, C, 4) normalised, one box per class
    subject_term: jax.Array  # (R, M)
    object_term: jax.Array  # (R, M)
    subgraph_term: jax.Array  # (K, P, P, M)


class FactorizableNet(nn.Module):
    """F-Net (Li et al., ECCV 2018), every published variant.

    Attributes:
      num_object_classes, num_predicate_classes: C and Q, with background.
      base_anchors: A anchors of the first cell, as a tuple of 4-tuples.
      relation_module: True is arch v4s, False v4.
      geometry: "v1" or "v2", of the relation modules and of duplicate removal.
      fusion: "sum", "prod" or "sum_prod".
      dropout: rate of grouped dropout; 0 is off.
      dtype: "bfloat16" rounds the factors of the large matrix products and convolutions to it;
        weights, sums, attention, boxes and scores stay float32. The published models are float32.
    """

    num_object_classes: int
    num_predicate_classes: int
    base_anchors: tuple[tuple[float, float, float, float], ...]
    vgg_widths: tuple[int, ...] = (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)
    dim_rpn: int = 512
    pool_size: int = 7
    dim_object: int = 512
    dim_subgraph: int = 512
    dim_predicate: int = 512
    dim_attention: int = 256
    message_passing_steps: int = 1
    relation_module: bool = False
    geometry: str = "v2"
    fusion: str = "sum"
    bottleneck: bool = True
    use_bias: bool = True
    dropout: float = 0.0
    rank_embeddings: int = 256
    dtype: str = "float32"

    def setup(self):
        self.backbone = VGG16(self.vgg_widths, self.dtype)
        self.rpn = RPNHead(self.dim_rpn, len(self.base_anchors), self.dtype)
        self.object_fc = ObjectFC(self.dim_object, self.dropout, self.dtype)
        self.subgraph_conv = SubgraphConv(self.dim_subgraph, self.dropout, self.dtype)
        self.message_passing = [
            MessagePassing(
                self.dim_object,
                self.dim_subgraph,
                self.dim_attention,
                self.relation_module,
                self.geometry,
                self.use_bias,
                self.dropout,
                self.dtype,
                name=f"message_passing_{step}",
            )
            for step in range(self.message_passing_steps)
        ]
        self.predicate_inference = PredicateInference(
            self.dim_attention,
            self.dim_predicate,
            self.fusion,
            self.bottleneck,
            self.use_bias,
            self.dropout,
            self.dtype,
        )
        self.object_score = Linear(self.num_object_classes, 0.01)
        self.object_box = Linear(4 * self.num_object_classes, 0.005, name="box_deltas")
        self.predicate_score = Linear(self.num_predicate_classes, 0.01)
        self.duplicate_removal = DuplicateRemoval(
            self.dim_attention, self.rank_embeddings, self.geometry
        )

    def features(self, image, size, *, frozen_layers: int = 0):
        """(H, W, 3) normalised image, valid (height, width) -> (H // 16, W // 16, channels)."""
        return self.backbone(image, size, frozen_layers=frozen_layers)

    def rpn_outputs(self, features):
        """(h, w, channels) -> logits (h, w, 2, A) and normalised box deltas (h, w, A, 4)."""
        return self.rpn(features)

    def pool(self, features, boxes, feature_size):
        """ROI-align of (N, 4) boxes in image pixels -> (N, P, P, channels)."""
        return roi_align(
            features,
            boxes,
            pool_size=self.pool_size,
            spatial_scale=1.0 / STRIDE,
            features_size=feature_size,
        )

    def embed_objects(self, features, feature_size, boxes, *, train: bool = False):
        """Object vectors (R, D) of (R, 4) boxes in image pixels, before message passing."""
        return self.object_fc(self.pool(features, boxes, feature_size), train=train)

    def graph(
        self,
        objects,
        features,
        feature_size,
        boxes,
        object_mask,
        subgraph_boxes,
        incidence,
        *,
        train: bool = False,
    ) -> GraphOutputs:
        """Subgraphs pooled and embedded, then objects and subgraphs refined by message passing.

        Args:
          objects: (R, D) float32, from `embed_objects`.
          features: (h, w, channels) float32.
          feature_size: valid (height, width) of the map.
          boxes: (R, 4) float32 object boxes, image pixels.
          object_mask: (R,) bool.
          subgraph_boxes: (K, 4) float32.
          incidence: (K, R) bool.
          train: whether dropout is on.
        """
        subgraphs = self.subgraph_conv(
            self.pool(features, subgraph_boxes, feature_size), train=train
        )
        deltas = self.object_box(nn.relu(objects))
        for step in self.message_passing:
            objects, subgraphs = step(
                objects, subgraphs, boxes, object_mask, incidence, train=train
            )
        terms = self.predicate_inference.project(objects, subgraphs, train=train)
        return GraphOutputs(
            objects=objects,
            object_logits=self.object_score(nn.relu(objects)),
            box_deltas=deltas.reshape(deltas.shape[0], -1, 4),
            subject_term=terms[0],
            object_term=terms[1],
            subgraph_term=terms[2],
        )

    def predicates(
        self, outputs: GraphOutputs, subjects, objects, subgraphs, *, train: bool = False
    ):
        """Predicate logits (N, Q) of pairs: (N,) indices of subject, object and subgraph."""
        phrase = self.predicate_inference.infer(
            outputs.subject_term[subjects],
            outputs.object_term[objects],
            outputs.subgraph_term[subgraphs],
            train=train,
        )
        return self.predicate_score(nn.relu(phrase))

    def duplicate_factor(self, objects, probabilities, boxes, mask):
        """(R, D) vectors, (R,) class probabilities, (R, 4), (R,) bool -> (R,) factors in (0, 1)."""
        return self.duplicate_removal(objects, probabilities, boxes, mask)

    def __call__(self, image):
        """Touches every parameter once, with one object; for `init` only."""
        size = image.shape[:2]
        features = self.features(image, size)
        self.rpn_outputs(features)
        boxes = image[:1, :4, 0] * 0.0
        mask = boxes[:, 0] == 0.0
        size = features.shape[:2]
        objects = self.embed_objects(features, size, boxes)
        outputs = self.graph(objects, features, size, boxes, mask, boxes, mask[None])
        index = mask.astype("int32") - 1
        self.predicates(outputs, index, index, index)
        return self.duplicate_factor(outputs.objects, outputs.object_logits[:, 0], boxes, mask)


class ObjectFC(nn.Module):
    """Pooled object features -> FC, ReLU, FC."""

    dim: int
    dropout: float
    dtype: str = "float32"

    @nn.compact
    def __call__(self, pooled, *, train: bool = False):  # (R, P, P, channels) -> (R, dim)
        x = pooled.reshape(pooled.shape[0], -1)
        x = Linear(self.dim, "he_uniform", dtype=self.dtype, name="fc1")(x)
        x = nn.relu(GroupDropout(self.dropout)(x, train=train))
        x = Linear(self.dim, "he_uniform", dtype=self.dtype, name="fc2")(x)
        return GroupDropout(self.dropout)(x, train=train)


class SubgraphConv(nn.Module):
    """Pooled subgraph features -> 3x3 convolution, ReLU, 3x3 convolution; keeps the map."""

    dim: int
    dropout: float
    dtype: str = "float32"

    @nn.compact
    def __call__(self, pooled, *, train: bool = False):  # (K, P, P, ch) -> (K, P, P, dim)
        x = Conv3x3(self.dim, "he_uniform", self.dtype, name="conv1")(pooled)
        x = nn.relu(GroupDropout(self.dropout)(x, train=train))
        x = Conv3x3(self.dim, "he_uniform", self.dtype, name="conv2")(x)
        return GroupDropout(self.dropout)(x, train=train)


def param_shapes(model: FactorizableNet):
    """The parameter tree with shapes in place of arrays; computes nothing."""
    image = jax.ShapeDtypeStruct(PARAM_SHAPE_IMAGE, jnp.float32)
    return jax.eval_shape(model.init, jax.random.key(0), image)["params"]
