"""Region proposal network: its head, and proposals from what the head says."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from fnet_jax.anchors import shifted_anchors
from fnet_jax.kernels import clip_boxes, decode_boxes, nms
from fnet_jax.layers import Conv3x3, Linear
from fnet_jax.structures import Proposals


class RPNHead(nn.Module):
    """3x3 convolution, then a score pair and a box for each of A anchors per cell."""

    dim: int
    num_anchors: int
    dtype: str = "float32"

    @nn.compact
    def __call__(self, features):
        """(h, w, C) -> logits (h, w, 2, A) (background, foreground) and deltas (h, w, A, 4)."""
        h, w = features.shape[:2]
        hidden = nn.relu(Conv3x3(self.dim, 0.025, self.dtype, name="conv")(features[None])[0])
        logits = Linear(2 * self.num_anchors, 0.025, name="score")(hidden)
        deltas = Linear(4 * self.num_anchors, 0.01, name="box_deltas")(hidden)
        return logits.reshape(h, w, 2, -1), deltas.reshape(h, w, -1, 4)


def propose(
    foreground,
    deltas,
    base_anchors,
    im_info,
    feature_size,
    *,
    pre_nms: int,
    post_nms: int,
    nms_threshold: float,
    min_size: float,
) -> Proposals:
    """Decodes, clips, filters, ranks and thins the anchors of one image.

    Args:
      foreground: (h, w, A) float32 foreground probabilities.
      deltas: (h, w, A, 4) float32 normalised box deltas.
      base_anchors: (A, 4) anchors of the first cell.
      im_info: (5,) float32 (height, width, scale, original height, original width).
      feature_size: valid (height, width) of the map, int32.
      pre_nms, post_nms: candidates before, and proposals after NMS.
      nms_threshold: a better box suppresses those whose IoU exceeds it.
      min_size: smallest side, in pixels of the original image.

    Returns: Proposals with `post_nms` slots.
    """
    h, w, num_anchors = foreground.shape
    boxes = decode_boxes(shifted_anchors(base_anchors, h, w), deltas.reshape(-1, 4))
    boxes = clip_boxes(boxes, im_info[0], im_info[1])
    sides = boxes[:, 2:] - boxes[:, :2] + 1.0
    inside = (jnp.arange(h) < feature_size[0])[:, None] & (jnp.arange(w) < feature_size[1])
    valid = jnp.broadcast_to(inside[:, :, None], (h, w, num_anchors)).reshape(-1)
    valid &= jnp.all(sides >= min_size * im_info[2], axis=1)

    scores, order = jax.lax.top_k(
        jnp.where(valid, foreground.reshape(-1), -1.0), min(pre_nms, valid.size)
    )
    kept = nms(boxes[order], None, nms_threshold, post_nms, mask=scores >= 0.0)
    zero = jnp.zeros((), jnp.float32)
    return Proposals(
        boxes=jnp.where(kept.mask[:, None], boxes[order[kept.indices]], zero),
        scores=jnp.where(kept.mask, scores[kept.indices], zero),
        mask=kept.mask,
    )
