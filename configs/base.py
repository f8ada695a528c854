"""The published recipe of Factorizable Net; every other config changes a few fields of it.

Each field is stated once, here. A placeholder is switched off until it is given a value.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

NORMAL_SCALES = (450, 500, 550, 600, 600, 650, 700, 750)
# Padded image sizes (height, width) that are compiled; every image takes the smallest that holds
# it. Chosen on VRD's image sizes: 12.5% of padding in training, 4.9% at test
# (docs/performance.md, Padding).
BUCKETS_1000 = (
    (500, 750),
    (600, 800),
    (600, 925),
    (675, 1000),
    (750, 1000),
    (750, 500),
    (800, 600),
    (925, 600),
    (1000, 750),
    (1000, 1000),
)


def get_config() -> ConfigDict:
    """Returns the full configuration with the values shared by the three published models."""
    config = ConfigDict()
    config.seed = 1

    config.dataset = ConfigDict(
        {
            "name": "",
            "builder_config": "",  # "" = the builder's default
            "data_dir": "data",  # where built datasets are kept
            "manual_dir": "",  # where the downloaded sources lie
            "train_split": "train",
            "validation_split": "test",  # chooses the best checkpoint, on "test" as published
            "eval_split": "test",  # what --mode eval measures
            "num_workers": 2,  # image-loading processes; 0 loads in the main process
            "worker_timeout": 300.0,  # seconds without a batch: they are started anew
        }
    )

    config.image = ConfigDict(
        {
            # The original feeds BGR images through RGB statistics; published weights need it.
            "color_order": "bgr",
            "mean": (0.485, 0.456, 0.406),
            "std": (0.229, 0.224, 0.225),
            "train_scales": NORMAL_SCALES,
            "test_scale": 600,
            "max_size": 1000,
            "buckets": BUCKETS_1000,
        }
    )

    config.anchors = ConfigDict(
        {
            "kind": "kmeans",  # "kmeans" | "normal"
            "file": "",  # a kmeans_anchors.json; "" = the values below
            "scales": (
                19.944, 9.118, 35.648, 42.102, 23.476, 15.882, 6.169, 9.702, 6.072,
                32.254, 3.294, 10.148, 22.443, 13.831, 16.25, 27.969, 14.181, 27.818,
                34.146, 29.812, 14.219, 22.309, 20.36, 24.025, 40.593,
            ),
            "ratios": (
                2.631, 2.304, 0.935, 0.654, 0.173, 0.72, 0.553, 0.374, 1.565,
                0.463, 0.985, 0.914, 0.734, 2.671, 0.209, 1.318, 1.285, 2.717,
                0.369, 0.718, 0.319, 0.218, 1.319, 0.442, 1.437,
            ),
        }
    )  # fmt: skip

    config.model = ConfigDict(
        {
            "vgg_widths": (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512),
            "dim_rpn": 512,
            "pool_size": 5,
            "dim_object": 512,
            "dim_subgraph": 512,
            "dim_predicate": 512,
            "dim_attention": 256,
            "message_passing_steps": 1,
            "relation_module": True,  # arch v4s; False is v4
            "geometry": "v2",  # "v1" | "v2"
            "fusion": "sum",  # "sum" | "prod" | "sum_prod"
            "bottleneck": True,
            "use_bias": True,
            "dropout": 0.0,
            "rank_embeddings": 256,
            "duplicate_removal": True,
            # "float32" | "bfloat16": factors of the large matrix products and convolutions
            "compute_dtype": "float32",
            # Subgraph slots; the smallest that holds an image's subgraphs is used at run time.
            "subgraph_capacities": (256, 512, 1024),
        }
    )

    config.rpn_train = ConfigDict(
        {
            "pre_nms": 12000,
            "post_nms": 2000,
            "nms_threshold": 0.7,
            "min_size": 16.0,
            "negative_overlap": 0.3,
            "positive_overlap": 0.7,
            "allowed_border": 128.0,
            "batch_size": 512,
            "foreground_fraction": 0.5,
        }
    )

    config.train = ConfigDict(
        {
            # "rpn", "from_rpn", "end_to_end", "continue", "message_passing" or "from_scratch"
            "stage": "end_to_end",
            "init_from": "",  # weights to start from: an ImageNet VGG16, an RPN or a whole model
            "epochs": 15,
            "max_steps": placeholder(int),  # stop early, after this many optimizer steps
            "optimizer": "sgd",  # "sgd" | "adam" | "adagrad"
            "learning_rate": 0.01,
            "lr_schedule": "step",  # "step" | "cosine": from learning_rate to 0 over all epochs
            "lr_decay": 0.1,
            "lr_decay_epochs": 3,
            "momentum": 0.9,
            "nesterov": True,
            "weight_decay": 5e-4,
            "clip_norm": 10.0,
            "backbone_lr_factor": 0.1,
            "frozen_backbone_layers": 4,  # conv1_1 .. conv2_2
            "accumulate_steps": 1,
            "object_batch": 256,
            "object_foreground_fraction": 0.5,
            "object_foreground_overlap": 0.5,
            "object_background_overlap": 0.4,
            "relation_batch": 512,
            "relation_foreground_fraction": 0.5,
            "subgraph_nms": 0.5,
            # Of several predicates annotated for a pair: "last", as published, or one at "random".
            "pair_predicate": "last",
            "overlapping_pairs_only": False,  # leave out relationships of boxes that do not overlap
            "class_weights": True,
            "loss_weights": ConfigDict(
                {
                    "object_class": 1.0,
                    "object_box": 0.5,
                    "predicate": 2.0,
                    "duplicate": 1.0,
                    "rpn": 0.5,
                    "rpn_box": 0.2,  # inside the RPN loss
                }
            ),
            "log_every_steps": 20,
            "eval_every_epochs": 1,
            # At most this many images in the evaluations during training.
            "eval_images": placeholder(int),
            "checkpoint_every_steps": 1000,
            "keep_checkpoints": 2,  # the newest; a damaged one is passed over
            # If a loss or gradient is NaN or infinite, "stop" ends the run and "skip" leaves the
            # weights as they are and counts the step. The batch is written to the workdir.
            "non_finite": "stop",
        }
    )

    config.test = ConfigDict(
        {
            "pre_nms": 12000,
            "post_nms": 300,
            "nms_threshold": 0.6,
            "min_size": 16.0,
            "max_objects": 200,
            "subgraph_nms": 0.5,
            "protocols": ("fnet", "sgb"),
            # Nothing given is the task SGDet, boxes SGCls, boxes and labels PredCls.
            "use_gt_boxes": False,
            "use_gt_labels": False,
            "object_nms": placeholder(float),  # class-aware NMS threshold; None = off
            "triplet_nms": 0.4,  # 1.0 = off
            "predicates_per_pair": 10,
            "self_pairs": True,  # triplets of an object with itself, as published (VRD has some)
            "max_candidates": 10000,  # best triplets before triplet NMS
            "max_triplets": 100,
            "max_images": placeholder(int),  # evaluate only the first so many
            "pictures": 4,  # draw the graphs of the first so many
        }
    )
    return config
