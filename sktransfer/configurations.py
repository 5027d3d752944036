"""Published preprocessing configurations, read into what a backbone expects."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sktransfer.preprocessing import Preprocessing

Config = Mapping[str, Any]
Size = int | tuple[int, int]  # length of the shorter side, or height and width
Triple = tuple[float, float, float]

# transformers, image_utils.py; open_clip, constants.py; timm/data/constants.py
_STANDARD: tuple[Triple, Triple] = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
_IMAGENET: tuple[Triple, Triple] = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_CLIP: tuple[Triple, Triple] = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))

_FILTERS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}  # Pillow's codes
_CONVNEXT_SQUASHES_FROM = 384  # pixels; transformers, models/convnext/image_processing_convnext.py


@dataclass(frozen=True)
class _Processor:
    """What an image processor of transformers does where its file is silent."""

    square: bool  # an integer size means both sides, not the shorter one
    resample: str
    statistics: tuple[Triple, Triple] | None  # mean and std; None does not normalise
    crop: int | None = None  # side of the centre crop; None does not crop
    sizes: Literal["plain", "convnext", "poolformer", "levit"] = "plain"  # how resize follows from size
    flip: bool = False  # RGB becomes BGR
    include_top: bool = False  # divides by std once more


# transformers, models/NAME/image_processing_NAME.py: defaults of __init__ and default_to_square
_PROCESSORS = {
    "Beit": _Processor(True, "bicubic", _STANDARD, 224),
    "Bit": _Processor(False, "bicubic", _CLIP, 224),
    "ChineseCLIP": _Processor(False, "bicubic", _CLIP, 224),
    "CLIP": _Processor(False, "bicubic", _CLIP, 224),
    "ConvNext": _Processor(False, "bicubic", _STANDARD, sizes="convnext"),
    "DeiT": _Processor(True, "bicubic", _STANDARD, 224),
    "EfficientNet": _Processor(True, "nearest", _STANDARD, include_top=True),
    "Levit": _Processor(False, "bicubic", _IMAGENET, 224, sizes="levit"),
    "MobileNetV1": _Processor(False, "bilinear", _STANDARD, 224),
    "MobileNetV2": _Processor(False, "bilinear", _STANDARD, 224),
    "MobileViT": _Processor(False, "bilinear", None, 256, flip=True),
    "PoolFormer": _Processor(False, "bicubic", _IMAGENET, 224, sizes="poolformer"),
    "Pvt": _Processor(True, "bicubic", _IMAGENET),
    "Segformer": _Processor(True, "bilinear", _IMAGENET),
    "Siglip": _Processor(True, "bicubic", _STANDARD),
    "ViT": _Processor(True, "bilinear", _STANDARD),
}
_REFUSED_PROCESSORS = {
    "LayoutLMv2": "which reverses the channels whatever its file says",
    "Perceiver": "which crops before it resizes",
}

_KNOWN_STEPS = {
    "do_center_crop",
    "do_convert_rgb",
    "do_flip_channel_order",
    "do_flip_channels",
    "do_normalize",
    "do_reduce_labels",
    "do_rescale",
    "do_resize",
    "do_resize_and_center_crop",
}
_REFUSED_KEYS = {
    "crop_border_pixels",
    "ensure_multiple_of",
    "keep_aspect_ratio",
    "max_size",
    "offset",
    "size_divisor",
    "use_square_size",
}
_STAGE_ORDER = ("resize", "center_crop", "pad_to_size", "to_tensor", "rescale", "normalize")


def read_configuration(config: Mapping[str, Any]) -> Preprocessing:
    """Read the preprocessing that a model's repository publishes.

    Parameters
    ----------
    config : mapping
        The content of one of these JSON files; null is the same as absent.

        * ``preprocessor_config.json`` or ``processor_config.json`` of transformers (image_processing_utils.py,
          models/NAME/image_processing_NAME.py), old ("feature_extractor_type") and new ("image_processor_type").
          What the file leaves out is the default of the processor it names; without a known name, an integer
          ``size`` is the shorter side if a centre crop follows and both sides otherwise. Files that do not speak of
          ``do_rescale`` mean 1 / 255, or 1 if ``image_mean`` exceeds 1. Channels are reversed before ``image_mean``
          is subtracted.
        * ``config.json`` of timm with its "pretrained_cfg" (timm/data/transforms_factory.py,
          transforms_imagenet_eval); the ``test_*`` keys are another, better resolution and are not used.
        * ``open_clip_config.json`` or its "preprocess_cfg" (open_clip/transform.py, image_transform).
        * ``preprocess.json`` with torchvision's transforms by name under "stages", "test" or "val", as the
          repository deepghs/timms has them (imgutils/preprocess/pillow.py).

    Returns
    -------
    Preprocessing
        Crops whose margins differ by a pixel follow torchvision, as timm, open_clip and the fast processors of
        transformers do; the slow processors place them by up to a pixel differently.

    Raises
    ------
    ValueError
        If the input size or the arithmetic is not stated, a value is malformed, or a step is asked for that is not a
        resize followed by a centre crop and ``(pixel * scale - mean) / std``; the message names key and value.

    Examples
    --------
    >>> p = read_configuration({"image_processor_type": "ViTImageProcessor", "size": {"height": 224, "width": 224}})
    >>> p.resize, p.crop, p.mean
    ((224, 224), (224, 224), (0.5, 0.5, 0.5))
    """
    if not isinstance(config, Mapping):
        raise ValueError(f"a configuration must be a JSON object. Got {config!r} instead.")
    stated = _drop_nulls(config)
    return next((read for key, read in _READERS.items() if key in stated), _read_transformers)(stated)


def _read_transformers(config: Config) -> Preprocessing:
    known = _find_processor(config)
    _refuse_unknown_steps(config)
    resize, crop = _read_geometry(config, known)
    if known is None and not {"do_normalize", "do_rescale", "image_mean", "rescale_factor"} & config.keys():
        raise ValueError("the configuration states no arithmetic: neither image_mean nor do_normalize nor do_rescale")
    scale, mean, std = _read_arithmetic(config, known)
    flip = _read_flag(config, "do_flip_channels", known is not None and known.flip)
    return Preprocessing(
        crop=crop,
        resize=resize,
        resample=_read_filter("resample", config.get("resample", known.resample if known else "bilinear")),
        scale=scale,
        mean=mean,
        std=std,
        channel_order="BGR" if _read_flag(config, "do_flip_channel_order", flip) else "RGB",
    )


def _find_processor(config: Config) -> _Processor | None:
    full = str(config.get("image_processor_type", config.get("feature_extractor_type", "")))
    name = full.removesuffix("Fast").removesuffix("Pil")
    name = name.removesuffix("ImageProcessor").removesuffix("FeatureExtractor")
    if name in _REFUSED_PROCESSORS:
        raise ValueError(f"image_processor_type must not be {full!r}, {_REFUSED_PROCESSORS[name]}.")
    return _PROCESSORS.get(name)


def _refuse_unknown_steps(config: Config) -> None:
    for key, value in config.items():
        step = (key.startswith("do_") and key not in _KNOWN_STEPS) or key in _REFUSED_KEYS
        without_effect = value is False or (key in _REFUSED_KEYS and value in (0, 1) and value is not True)
        if step and not without_effect:
            raise ValueError(
                f"{key} must be absent or without effect: images can only be resized and cropped. "
                f"Got {value!r} instead."
            )


def _read_geometry(config: Config, known: _Processor | None) -> tuple[Size | None, tuple[int, int]]:
    both = _read_flag(config, "do_resize_and_center_crop", True)
    cuts = both and (known.crop is not None if known else "crop_size" in config)
    cuts = _read_flag(config, "do_center_crop", cuts)
    crop: Size | None = None
    if cuts and "crop_size" in config:
        crop = _read_size("crop_size", config["crop_size"], square=True)
    elif cuts and known and known.crop:
        crop = (known.crop, known.crop)
    resize = None
    if _read_flag(config, "do_resize", both):
        if "size" not in config:
            raise ValueError("the configuration states no input size: size is missing")
        square = _read_flag(config, "default_to_square", known.square if known else not cuts)
        size = _read_size("size", config["size"], square)
        resize, cut = _SIZE_RULES[known.sizes if known else "plain"](config, size)
        crop = crop or (cut if not cuts else None)
    if not isinstance(crop, tuple):
        raise ValueError("the configuration states no input size: neither crop_size nor size with height and width")
    return resize, crop


def _follow_size(config: Config, size: Size) -> tuple[Size, Size]:
    if config.get("crop_pct", 1) != 1:
        raise ValueError(
            "crop_pct must come with ConvNextImageProcessor or PoolFormerImageProcessor. "
            f"Got crop_pct {config['crop_pct']!r} without them instead."
        )
    return size, size


def _follow_convnext(config: Config, size: Size) -> tuple[Size, Size]:
    if not isinstance(size, int) or _read_flag(config, "do_center_crop", False):
        raise ValueError(
            "size of ConvNextImageProcessor must be shortest_edge, with no center_crop of its own. "
            f"Got size {config['size']!r} and do_center_crop {config.get('do_center_crop')} instead."
        )
    square = (size, size)
    if size >= _CONVNEXT_SQUASHES_FROM:
        return square, square
    return int(size / _read_number("crop_pct", config.get("crop_pct", 224 / 256))), square


def _follow_poolformer(config: Config, size: Size) -> tuple[Size, Size]:
    fraction = _read_number("crop_pct", config.get("crop_pct", 0.9))
    if isinstance(size, int) or size[0] == size[1]:
        resize: Size = int((size if isinstance(size, int) else size[0]) / fraction)
    else:
        resize = int(size[0] / fraction), int(size[1] / fraction)
    return resize, resize


def _follow_levit(config: Config, size: Size) -> tuple[Size, Size]:
    return _follow_size(config, int(256 / 224 * size) if isinstance(size, int) else size)


def _read_arithmetic(config: Config, known: _Processor | None) -> tuple[float, Triple, Triple]:
    """Factors of ``(pixel * scale - mean) / std``, with both normalisations of EfficientNet in one."""
    mean, std = known.statistics if known and known.statistics else (None, None)
    mean, std = config.get("image_mean", mean), config.get("image_std", std)
    means, stds = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    if _read_flag(config, "do_normalize", known.statistics is not None if known else "image_mean" in config):
        means, stds = _read_triple("image_mean", mean), _read_triple("image_std", std)
    scale = 1.0
    if _read_flag(config, "do_rescale", "rescale_factor" in config or max(means) <= 1):
        scale = _read_number("rescale_factor", config.get("rescale_factor", 1 / 255))
        if _read_flag(config, "rescale_offset", False):
            means = (means[0] + 1, means[1] + 1, means[2] + 1)
    if _read_flag(config, "include_top", known is not None and known.include_top):
        again = _read_triple("image_std", std)
        stds = (stds[0] * again[0], stds[1] * again[1], stds[2] * again[2])
    return scale, means, stds


def _read_timm(config: Config) -> Preprocessing:
    config = _read_part(config, "pretrained_cfg", config)
    _refuse_unknown_steps(config)
    size = config.get("input_size")
    if size is None:
        raise ValueError("the configuration states no input size: input_size is missing")
    if not isinstance(size, Sequence) or len(size) != 3 or size[0] != 3:
        raise ValueError(f"input_size must be 3 channels, height and width. Got {size!r} instead.")
    crop = _read_side("input_size", size[1]), _read_side("input_size", size[2])
    fraction = _read_number("crop_pct", config.get("crop_pct") or 0.875)
    scaled = math.floor(crop[0] / fraction), math.floor(crop[1] / fraction)
    return Preprocessing(
        crop=crop,
        resize=_resize_by_mode("crop_mode", config.get("crop_mode", "center"), scaled, keeps="center"),
        resample=_read_filter("interpolation", config.get("interpolation", "bicubic")),
        mean=_read_triple("mean", config.get("mean", _IMAGENET[0])),
        std=_read_triple("std", config.get("std", _IMAGENET[1])),
    )


def _read_open_clip(config: Config) -> Preprocessing:
    vision = _read_part(_read_part(config, "model_cfg", {}), "vision_cfg", {})
    config = _read_part(config, "preprocess_cfg", config)
    _refuse_unknown_steps(config)
    if config.get("mode", "RGB") != "RGB":
        raise ValueError(f"mode must be 'RGB'. Got {config['mode']!r} instead.")
    stated = vision.get("image_size", config.get("size"))  # open_clip, factory.py: the network's own size wins
    if stated is None:
        raise ValueError("the configuration states no input size: neither size nor image_size of vision_cfg")
    size = _read_size("size", stated, square=True)
    crop = size if isinstance(size, tuple) else (size, size)
    interpolation = config.get("interpolation", "bicubic")
    return Preprocessing(
        crop=crop,
        resize=_resize_by_mode("resize_mode", config.get("resize_mode", "shortest"), crop, keeps="shortest"),
        resample=_read_filter("interpolation", "bicubic" if interpolation == "random" else interpolation),
        mean=_read_triple("mean", config.get("mean", _CLIP[0])),
        std=_read_triple("std", config.get("std", _CLIP[1])),
    )


def _resize_by_mode(key: str, mode: Any, size: tuple[int, int], keeps: str) -> Size:
    """Size to resize to in timm's and open_clip's words; `keeps` is their mode that keeps the aspect ratio."""
    if mode == "squash":
        return size
    if mode != keeps:
        raise ValueError(f"{key} must be {keeps!r} or 'squash': images are never padded. Got {mode!r} instead.")
    if size[0] != size[1]:
        raise ValueError(f"{key} {keeps!r} must come with a square size. Got height and width {size} instead.")
    return size[0]


def _read_stages(config: Config) -> Preprocessing:
    key = next(key for key in ("stages", "test", "val") if key in config)
    if not isinstance(config[key], Sequence) or not all(isinstance(stage, Mapping) for stage in config[key]):
        raise ValueError(f"{key} must be a list of stages. Got {config[key]!r} instead.")
    values: dict[str, Any] = {"scale": 1.0}
    previous = ""
    for stage in map(_drop_nulls, config[key]):
        kind = str(stage.get("type")).removeprefix("maybe_")
        if kind == "convert_rgb":
            continue
        if kind not in _STAGE_ORDER:
            raise ValueError(f"the stage {stage.get('type')!r} is unknown")
        if previous and _STAGE_ORDER.index(kind) <= _STAGE_ORDER.index(previous):
            raise ValueError(f"the stage {kind!r} must come once and before {previous!r}")
        _add_stage(values, kind, stage)
        previous = kind
    if not isinstance(values.setdefault("crop", values.get("resize")), tuple):
        raise ValueError("the configuration states no input size: neither center_crop nor resize to height and width")
    return Preprocessing(**values)


def _add_stage(values: dict[str, Any], kind: str, stage: Config) -> None:
    if kind == "resize":
        _refuse_unknown_steps(stage)
        values["resize"] = _read_size("size", stage.get("size"), square=False)
        values["resample"] = _read_filter("interpolation", stage.get("interpolation", "bilinear"))
    elif kind == "center_crop":
        values["crop"] = _read_size("size", stage.get("size"), square=True)
    elif kind == "pad_to_size":
        if _read_size("size", stage.get("size"), square=True) != values.get("crop", values.get("resize")):
            raise ValueError(
                f"size of the stage 'pad_to_size' must be that of the image before it. Got {stage.get('size')} instead."
            )
    elif kind == "to_tensor":
        values["scale"] = 1 / 255
    elif kind == "rescale":
        values["scale"] *= _read_number("rescale_factor", stage.get("rescale_factor"))
    elif kind == "normalize":
        values["mean"], values["std"] = (_read_triple(name, stage.get(name)) for name in ("mean", "std"))


def _drop_nulls(config: Config) -> Config:
    return {key: value for key, value in config.items() if value is not None}


def _read_part(config: Config, key: str, default: Config) -> Config:
    part = config.get(key, default)
    if not isinstance(part, Mapping):
        raise ValueError(f"{key} must be a JSON object. Got {part!r} instead.")
    return _drop_nulls(part)


def _read_flag(config: Config, key: str, default: bool) -> bool:
    value = config.get(key, default)
    if not isinstance(value, bool):
        raise ValueError(f"{key} must be true or false. Got {value!r} instead.")
    return value


def _read_number(key: str, value: Any) -> float:
    if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < math.inf:
        return float(value)
    raise ValueError(f"{key} must be a number > 0. Got {value!r} instead.")


def _read_side(key: str, value: Any) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and value >= 1:
        return value
    raise ValueError(f"{key} must be made of integers >= 1. Got {value!r} instead.")


def _read_size(key: str, value: Any, square: bool) -> Size:
    """Both sides of {"height", "width"} or a pair; of one number both if `square`, else that of the shorter side."""
    if isinstance(value, Mapping):
        sides = _drop_nulls(value)
        if sides.keys() == {"shortest_edge"} and key != "crop_size":
            return _read_side(key, sides["shortest_edge"])
        if sides.keys() != {"height", "width"}:
            alone = "" if key == "crop_size" else ", or only shortest_edge"
            raise ValueError(f"{key} must have height and width{alone}. Got {dict(value)} instead.")
        value = (sides["height"], sides["width"])
    if isinstance(value, Sequence) and len(value) == 2:
        return _read_side(key, value[0]), _read_side(key, value[1])
    side = _read_side(key, value[0] if isinstance(value, Sequence) and len(value) == 1 else value)
    return (side, side) if square else side


def _read_triple(key: str, value: Any) -> Triple:
    values = value if isinstance(value, Sequence) else [value] * 3
    if len(values) == 3 and all(isinstance(v, (int, float)) and math.isfinite(v) for v in values):
        return float(values[0]), float(values[1]), float(values[2])
    raise ValueError(f"{key} must be three numbers, one a channel. Got {value!r} instead.")


def _read_filter(key: str, value: Any) -> Any:
    if isinstance(value, str):
        name = value.rpartition(".")[2].lower()  # PIL.Image.BICUBIC, InterpolationMode.BICUBIC
    else:
        name = _FILTERS.get(value, "") if type(value) is int else ""
    if name not in _FILTERS.values():
        choices = ", ".join(f"{code} or {choice!r}" for code, choice in _FILTERS.items())
        raise ValueError(f"{key} must be one of Pillow's {choices}. Got {value!r} instead.")
    return name


_SIZE_RULES: dict[str, Callable[[Config, Size], tuple[Size, Size]]] = {
    "plain": _follow_size,
    "convnext": _follow_convnext,
    "poolformer": _follow_poolformer,
    "levit": _follow_levit,
}
# The first key that a configuration has decides how it is read.
_READERS: dict[str, Callable[[Config], Preprocessing]] = {
    "image_processor": lambda config: read_configuration(config["image_processor"]),
    "stages": _read_stages,
    "test": _read_stages,
    "val": _read_stages,
    "pretrained_cfg": _read_timm,
    "input_size": _read_timm,
    "preprocess_cfg": _read_open_clip,
    "resize_mode": _read_open_clip,
}
