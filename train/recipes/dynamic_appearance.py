"""Training settings of Dynamic Appearance, from appendix A of its paper. No heavy library is imported here."""

from __future__ import annotations

from typing import Any

#: All models but the transformer: SGD with momentum 0.9, cosine schedule with 7 epochs of linear warm-up, classification layers with 5
#: times the learning rate and weight decay, label smoothing 0.1, gradient clipping at 20.
_COMMON: dict[str, Any] = {"schedule": "cosine", "label_smoothing": 0.1, "clip_gradient": 20.0, "head_decay": 5.0}

#: Something-Something V1, and data sets like it, for which the paper gives no settings.
_SOMETHING: dict[str, dict[str, Any]] = {
    "da-tsm": {"lr": 0.12, "lr_batch": 256, "batch_size": 256, "epochs": 50, "warm_up": 7 / 50, "weight_decay": 8e-4, "dropout": 0.8},
    "da-x3d": {"lr": 0.12, "lr_batch": 256, "batch_size": 256, "epochs": 50, "warm_up": 7 / 50, "weight_decay": 4e-4, "dropout": 0.8},
}
_KINETICS: dict[str, dict[str, Any]] = {
    "da-tsm": {"lr": 0.08, "lr_batch": 512, "batch_size": 512, "epochs": 100, "warm_up": 7 / 100, "weight_decay": 2e-4, "dropout": 0.5},
    "da-x3d": {"lr": 0.4, "lr_batch": 256, "batch_size": 256, "epochs": 256, "warm_up": 7 / 256, "weight_decay": 5e-5, "dropout": 0.5},
}
#: UCF101 and HMDB51, fine-tuned from Kinetics weights; the paper gives these settings for the ResNet only.
_SMALL: dict[str, Any] = {
    "lr": 0.001,
    "lr_batch": 64,
    "batch_size": 64,
    "epochs": 10,
    "warm_up": 0.0,
    "weight_decay": 1e-4,
    "dropout": 0.8,
    "partial_bn": True,
}
#: The transformer: no dropout, gradient clipping or label smoothing; 5 times the learning rate for PWTP. The paper names no warm-up.
_TRANSFORMER: dict[str, Any] = {
    "schedule": "cosine",
    "lr": 0.004,
    "lr_batch": 64,
    "batch_size": 64,
    "epochs": 15,
    "warm_up": 0.0,
    "weight_decay": 1e-4,
    "dropout": 0.0,
    "label_smoothing": 0.0,
    "clip_gradient": 0.0,
    "layer_rates": False,
    "projection_rate": 5.0,
}
#: Frames of 48 pixels. A stride of 2 gives a grid of 24 x 24 subspaces, about as many as the paper's 28 x 28 for frames of 224; the paper's
#: stride of 8 would give 6 x 6, nearly one temporal filter for the whole frame. Top-1 on Moving Shapes after 3 epochs is 90.6 % instead of
#: 87.7 %, on UTD-MHAD's depth clips of an unseen person after 16 epochs 56.5 % instead of 50.9 % (one seed each).
_SMALL_FRAMES: dict[str, Any] = {"da_stride": 2, "da_kernel": 3}
#: Segments and frames per segment, S x T: on Something-Something (Table 1), and on the other data sets (Tables 2 and 3; Table 2 has no
#: X3D-XS, so it keeps those of Table 1).
_FRAMES: dict[str, tuple[tuple[int, int], tuple[int, int]]] = {
    "da-tsm": ((8, 4), (16, 8)),
    "da-x3d-xs": ((4, 8), (4, 8)),
    "da-x3d-m": ((16, 3), (16, 8)),
    "da-vit": ((8, 4), (8, 8)),
}


def appearance_changes(model: str, data: str) -> dict[str, Any]:
    """Return the fields that a model of dynamic appearance changes in the recipe of a data set.

    Args:
        model: Such as da-tsm-r50.
        data: The data set's name in a recipe. moving-shapes and tiny keep their own schedule and frame size.
    """
    family = model.rpartition("-")[0]
    # X3D's published code initialises its last layer with standard deviation 0.01.
    changes: dict[str, Any] = {"pretrained": False, "head_std": 0.01} if family == "da-x3d" else {}
    if data in {"moving-shapes", "tiny"}:
        return changes | _SMALL_FRAMES
    segments, frames = _FRAMES[model if family == "da-x3d" else family][data in {"kinetics400", "ucf101"}]
    if data == "ucf101" and family == "da-tsm":
        segments, frames = 8, 16
    changes |= {"segments": segments, "frames_per_segment": frames}
    if model == "da-x3d-xs":
        # Crops of 160 from a short side of 182, as in X3D's own paper.
        changes |= {"size": 160, "short_side": 182}
    if family == "da-vit":
        changes |= _TRANSFORMER
    elif data == "ucf101":
        changes |= _COMMON | _SMALL
    elif data == "kinetics400":
        changes |= _COMMON | _KINETICS[family]
    elif data != "custom":
        changes |= _COMMON | _SOMETHING[family]
    return changes
