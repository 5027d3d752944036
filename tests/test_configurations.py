"""Published configurations, and what the libraries that publish them do with an image, step by step."""

import numpy as np
import pytest
from PIL import Image

from sktransfer import Preprocessing
from sktransfer.configurations import read_configuration

NEAREST, BILINEAR, BICUBIC = Image.Resampling.NEAREST, Image.Resampling.BILINEAR, Image.Resampling.BICUBIC
HALF, MEAN, STD = (0.5, 0.5, 0.5), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
HALVES = {"image_mean": list(HALF), "image_std": list(HALF)}
IMAGENET = {"image_mean": list(MEAN), "image_std": list(STD)}
CLIP = {"image_mean": list(CLIP_MEAN), "image_std": list(CLIP_STD)}
OLD = {"do_normalize": True, "do_resize": True}
NEW = {**OLD, "do_rescale": True, "rescale_factor": 0.00392156862745098}
SQUARE = {"height": 224, "width": 224}
BY_255, NORMALIZE = ("rescale", 1 / 255), ("normalize", MEAN, STD)
NORMALIZE_HALVES, NORMALIZE_CLIP = ("normalize", HALF, HALF), ("normalize", CLIP_MEAN, CLIP_STD)
DINOV3 = [
    "crop_size",
    "data_format",
    "device",
    "disable_grouping",
    "do_center_crop",
    "do_convert_rgb",
    "return_tensors",
]

# name: (configuration, steps)
PUBLISHED = {
    # google/vit-base-patch16-224, preprocessor_config.json
    "vit, old": (
        {**OLD, **HALVES, "feature_extractor_type": "ViTFeatureExtractor", "resample": 2, "size": 224},
        [("squash", 224, 224, BILINEAR), BY_255, NORMALIZE_HALVES],
    ),
    # defaults of ViTFeatureExtractor with the statistics and filter of microsoft/swin-tiny-patch4-window7-224
    "swin": (
        {**OLD, **IMAGENET, "feature_extractor_type": "ViTFeatureExtractor", "resample": 3, "size": 224},
        [("squash", 224, 224, BICUBIC), BY_255, NORMALIZE],
    ),
    # defaults of ViTImageProcessorFast
    "vit, fast": (
        {**NEW, **HALVES, "image_processor_type": "ViTImageProcessorFast", "resample": 2, "size": SQUARE},
        [("squash", 224, 224, BILINEAR), BY_255, NORMALIZE_HALVES],
    ),
    # facebook/dinov2-base, preprocessor_config.json
    "dinov2": (
        {
            **NEW,
            **IMAGENET,
            "image_processor_type": "BitImageProcessor",
            "crop_size": SQUARE,
            "do_center_crop": True,
            "do_convert_rgb": True,
            "resample": 3,
            "size": {"shortest_edge": 256},
        },
        [("shortest", 256, BICUBIC), ("crop", 224, 224), BY_255, NORMALIZE],
    ),
    # facebook/dinov3-vits16-pretrain-lvd1689m, preprocessor_config.json
    "dinov3": (
        {
            **NEW,
            **IMAGENET,
            **dict.fromkeys(DINOV3),
            "default_to_square": True,
            "image_processor_type": "DINOv3ViTImageProcessorFast",
            "resample": 2,
            "size": SQUARE,
        },
        [("squash", 224, 224, BILINEAR), BY_255, NORMALIZE],
    ),
    # defaults of ConvNextFeatureExtractor at the size of facebook/convnext-tiny-224
    "convnext 224": (
        {
            **OLD,
            **IMAGENET,
            "crop_pct": 0.875,
            "feature_extractor_type": "ConvNextFeatureExtractor",
            "resample": 3,
            "size": 224,
        },
        [("shortest", 256, BICUBIC), ("crop", 224, 224), BY_255, NORMALIZE],
    ),
    # defaults of ConvNextFeatureExtractor at the size of facebook/convnext-base-384
    "convnext 384": (
        {
            **OLD,
            **IMAGENET,
            "crop_pct": 1.0,
            "feature_extractor_type": "ConvNextFeatureExtractor",
            "resample": 3,
            "size": 384,
        },
        [("squash", 384, 384, BICUBIC), BY_255, NORMALIZE],
    ),
    # microsoft/resnet-50, preprocessor_config.json
    "resnet": (
        {
            **OLD,
            **IMAGENET,
            "crop_pct": 0.875,
            "feature_extractor_type": "ConvNextFeatureExtractor",
            "resample": 3,
            "size": 224,
        },
        [("shortest", 256, BICUBIC), ("crop", 224, 224), BY_255, NORMALIZE],
    ),
    # defaults of ConvNextImageProcessor (crop_pct of null is 224 / 256) at the size of facebook/convnextv2-atto-1k-224
    "convnext, crop_pct of null": (
        {
            **NEW,
            **IMAGENET,
            "crop_pct": None,
            "image_processor_type": "ConvNextImageProcessor",
            "resample": 3,
            "size": {"shortest_edge": 224},
        },
        [("shortest", 256, BICUBIC), ("crop", 224, 224), BY_255, NORMALIZE],
    ),
    # defaults of MobileNetV2ImageProcessor, under the old name that google/mobilenet_v2_1.0_224 gives it
    "mobilenet v2": (
        {
            **NEW,
            **HALVES,
            "crop_size": SQUARE,
            "do_center_crop": True,
            "image_processor_type": "MobileNetV2FeatureExtractor",
            "resample": 2,
            "size": {"shortest_edge": 256},
        },
        [("shortest", 256, BILINEAR), ("crop", 224, 224), BY_255, NORMALIZE_HALVES],
    ),
    # google/efficientnet-b0, preprocessor_config.json
    "efficientnet": (
        {
            **NEW,
            "image_mean": list(MEAN),
            "image_std": [0.47853944, 0.4732864, 0.47434163],
            "crop_size": {"height": 289, "width": 289},
            "do_center_crop": False,
            "image_processor_type": "EfficientNetImageProcessor",
            "include_top": True,
            "resample": 0,
            "rescale_offset": False,
            "size": SQUARE,
        },
        [
            ("squash", 224, 224, NEAREST),
            BY_255,
            ("normalize", MEAN, (0.47853944, 0.4732864, 0.47434163)),
            ("normalize", (0, 0, 0), (0.47853944, 0.4732864, 0.47434163)),
        ],
    ),
    # defaults of EfficientNetImageProcessor, with rescale_offset as kakaobrain/align-base has it
    "align": (
        {
            **HALVES,
            "crop_size": {"height": 289, "width": 289},
            "do_center_crop": True,
            "do_normalize": False,
            "do_rescale": True,
            "do_resize": True,
            "image_processor_type": "EfficientNetImageProcessor",
            "include_top": False,
            "resample": 2,
            "rescale_factor": 0.00784313725490196,
            "rescale_offset": True,
            "size": {"height": 346, "width": 346},
        },
        [("squash", 346, 346, BILINEAR), ("crop", 289, 289), ("rescale", 1 / 127.5), ("subtract", 1)],
    ),
    # apple/mobilevit-small, preprocessor_config.json
    "mobilevit": (
        {
            "crop_size": 256,
            "do_center_crop": True,
            "do_flip_channels": True,
            "do_resize": True,
            "feature_extractor_type": "MobileViTFeatureExtractor",
            "resample": 2,
            "size": 288,
        },
        [("shortest", 288, BILINEAR), ("crop", 256, 256), BY_255, ("flip",)],
    ),
    # defaults of MobileViTImageProcessorFast, with statistics (given in the order after the flip)
    "mobilevit, normalised": (
        {
            **NEW,
            **IMAGENET,
            "image_processor_type": "MobileViTImageProcessorFast",
            "size": {"shortest_edge": 288},
        },
        [("shortest", 288, BILINEAR), ("crop", 256, 256), BY_255, ("flip",), NORMALIZE],
    ),
    # defaults of DeiTFeatureExtractor with the statistics of facebook/deit-base-distilled-patch16-224
    "deit": (
        {
            **OLD,
            **IMAGENET,
            "crop_size": 224,
            "do_center_crop": True,
            "feature_extractor_type": "DeiTFeatureExtractor",
            "resample": 3,
            "size": 256,
        },
        [("squash", 256, 256, BICUBIC), ("crop", 224, 224), BY_255, NORMALIZE],
    ),
    # defaults of BeitFeatureExtractor, without the crop as microsoft/beit-base-patch16-224 has it
    "beit": (
        {
            **OLD,
            **HALVES,
            "crop_size": 224,
            "do_center_crop": False,
            "feature_extractor_type": "BeitFeatureExtractor",
            "resample": 2,
            "size": 224,
        },
        [("squash", 224, 224, BILINEAR), BY_255, NORMALIZE_HALVES],
    ),
    # openai/clip-vit-base-patch32, preprocessor_config.json
    "clip": (
        {
            **OLD,
            **CLIP,
            "crop_size": 224,
            "do_center_crop": True,
            "feature_extractor_type": "CLIPFeatureExtractor",
            "resample": 3,
            "size": 224,
        },
        [("shortest", 224, BICUBIC), ("crop", 224, 224), BY_255, NORMALIZE_CLIP],
    ),
    # google/siglip-base-patch16-224, preprocessor_config.json
    "siglip": (
        {**NEW, **HALVES, "image_processor_type": "SiglipImageProcessor", "resample": 3, "size": SQUARE},
        [("squash", 224, 224, BICUBIC), BY_255, NORMALIZE_HALVES],
    ),
    # defaults of LevitFeatureExtractor (facebook/levit-128S)
    "levit": (
        {
            **OLD,
            **IMAGENET,
            "do_center_crop": True,
            "feature_extractor_type": "LevitFeatureExtractor",
            "resample": 3,
            "size": 224,
        },
        [("shortest", 256, BICUBIC), ("crop", 224, 224), BY_255, NORMALIZE],
    ),
    # sail/poolformer_s12, preprocessor_config.json
    "poolformer": (
        {
            **IMAGENET,
            "crop_pct": 0.9,
            "do_normalize": True,
            "do_resize_and_center_crop": True,
            "feature_extractor_type": "PoolFormerFeatureExtractor",
            "resample": 3,
            "size": 224,
        },
        [("shortest", 248, BICUBIC), ("crop", 224, 224), BY_255, NORMALIZE],
    ),
    # defaults of PvtImageProcessor, scalars as mean and std as transformers allows
    "pvt": (
        {**NEW, "image_mean": 0.5, "image_std": 0.5, "image_processor_type": "PvtImageProcessor", "size": 224},
        [("squash", 224, 224, BICUBIC), BY_255, NORMALIZE_HALVES],
    ),
    # defaults of ConvNextImageProcessor under the old name, as fastembed asks for it (Qdrant/resnet50-onnx)
    "qdrant resnet50": (
        {
            **NEW,
            **IMAGENET,
            "crop_pct": 0.875,
            "image_processor_type": "ConvNextFeatureExtractor",
            "resample": 3,
            "size": {"shortest_edge": 224},
        },
        [("shortest", 256, BICUBIC), ("crop", 224, 224), BY_255, NORMALIZE],
    ),
    # defaults of CLIPImageProcessor, nested as transformers writes processor_config.json
    "processor_config": (
        {"image_processor": {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 224}}},
        [("shortest", 224, BICUBIC), ("crop", 224, 224), BY_255, NORMALIZE_CLIP],
    ),
    # timm/resnet50.a1_in1k, config.json (timm/models/resnet.py)
    "timm resnet50": (
        {
            "architecture": "resnet50",
            "num_classes": 1000,
            "pretrained_cfg": {
                "tag": "a1_in1k",
                "input_size": [3, 224, 224],
                "test_input_size": [3, 288, 288],
                "fixed_input_size": False,
                "interpolation": "bicubic",
                "crop_pct": 0.95,
                "test_crop_pct": 1.0,
                "crop_mode": "center",
                "mean": list(MEAN),
                "std": list(STD),
                "pool_size": [7, 7],
            },
        },
        [("shortest", 235, BICUBIC), ("crop", 224, 224), BY_255, NORMALIZE],
    ),
    # timm/inception_v3.tf_in1k, config.json (timm/models/inception_v3.py)
    "timm inception_v3": (
        {
            "architecture": "inception_v3",
            "pretrained_cfg": {
                "input_size": [3, 299, 299],
                "interpolation": "bicubic",
                "crop_pct": 0.875,
                "crop_mode": "center",
                "mean": list(HALF),
                "std": list(HALF),
            },
        },
        [("shortest", 341, BICUBIC), ("crop", 299, 299), BY_255, NORMALIZE_HALVES],
    ),
    # defaults of timm's pretrained_cfg, with crop_mode "squash" and a network that is not square
    "timm squash": (
        {"input_size": [3, 192, 256], "crop_pct": 0.96, "crop_mode": "squash", "interpolation": "bilinear"},
        [("squash", 200, 266, BILINEAR), ("crop", 192, 256), BY_255, NORMALIZE],
    ),
    # transforms of timm/resnet50.a1_in1k in the format of deepghs/timms, preprocess.json
    "timms": (
        {
            "test": [
                {"type": "resize", "size": 235, "interpolation": "bicubic", "max_size": None, "antialias": True},
                {"type": "center_crop", "size": [224, 224]},
                {"type": "maybe_to_tensor"},
                {"type": "normalize", "mean": list(MEAN), "std": list(STD)},
            ]
        },
        [("shortest", 235, BICUBIC), ("crop", 224, 224), BY_255, NORMALIZE],
    ),
    # defaults of open_clip's PreprocessCfg (laion/CLIP-ViT-B-32-laion2B-s34B-b79K, open_clip_config.json)
    "open_clip": (
        {
            "model_cfg": {"embed_dim": 512, "vision_cfg": {"image_size": 224, "layers": 12, "patch_size": 32}},
            "preprocess_cfg": {"mean": list(CLIP_MEAN), "std": list(CLIP_STD)},
        },
        [("shortest", 224, BICUBIC), ("crop", 224, 224), BY_255, NORMALIZE_CLIP],
    ),
    # timm/ViT-B-16-SigLIP, open_clip_config.json
    "open_clip siglip": (
        {
            "model_cfg": {"embed_dim": 768, "vision_cfg": {"image_size": 224}},
            "preprocess_cfg": {
                "mean": list(HALF),
                "std": list(HALF),
                "interpolation": "bicubic",
                "resize_mode": "squash",
            },
        },
        [("squash", 224, 224, BICUBIC), BY_255, NORMALIZE_HALVES],
    ),
    # defaults of open_clip's PreprocessCfg, as immich-app/ViT-B-32__openai writes visual/preprocess_cfg.json
    "open_clip, flat": (
        {
            "size": [224, 224],
            "mode": "RGB",
            "mean": list(CLIP_MEAN),
            "std": list(CLIP_STD),
            "interpolation": "bicubic",
            "resize_mode": "shortest",
            "fill_color": 0,
        },
        [("shortest", 224, BICUBIC), ("crop", 224, 224), BY_255, NORMALIZE_CLIP],
    ),
}


def apply_geometry(image, step):
    """The image after one step on pixels: torchvision's rounding, Pillow's resize, the crop as a slice."""
    match step:
        case ("shortest", length, resample):
            short = min(image.size)
            return image.resize(
                [length if side == short else int(length * side / short) for side in image.size], resample
            )
        case ("squash", height, width, resample):
            return image.resize((width, height), resample)
        case ("crop", height, width):
            pixels = np.asarray(image)
            top, left = round((image.height - height) / 2.0), round((image.width - width) / 2.0)
            return Image.fromarray(pixels[top : top + height, left : left + width])


def apply_arithmetic(values, step):
    """The values after one step on numbers."""
    match step:
        case ("rescale", factor):
            return values * factor
        case ("subtract", number):
            return values - number
        case ("flip",):
            return values[..., ::-1]
        case ("normalize", mean, std):
            return (values - np.array(mean)) / np.array(std)


def run_slowly(image, steps):
    """Pixels and input of the network, (height, width, 3) both."""
    geometry = [step for step in steps if step[0] in {"shortest", "squash", "crop"}]
    assert steps[: len(geometry)] == geometry
    for step in geometry:
        image = apply_geometry(image, step)
    pixels = np.asarray(image)
    values = pixels.astype(np.float64)
    for step in steps[len(geometry) :]:
        values = apply_arithmetic(values, step)
    return pixels, values


@pytest.mark.parametrize("shape", [(201, 318), (433, 290)], ids=["landscape", "portrait"])
@pytest.mark.parametrize(("config", "steps"), PUBLISHED.values(), ids=PUBLISHED)
def test_a_published_configuration_gives_the_input_that_its_library_documents(config, steps, shape):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8))
    expected_pixels, expected = run_slowly(image, steps)
    p = read_configuration(config)
    pixels = p.resize_and_crop(image)
    np.testing.assert_array_equal(pixels, expected_pixels)
    order = [2, 1, 0] if p.channel_order == "BGR" else [0, 1, 2]
    values = (pixels[..., order] * p.scale - np.array(p.mean)) / np.array(p.std)
    np.testing.assert_allclose(values, expected, rtol=1e-6, atol=1e-9)
    assert p.crop == pixels.shape[:2]


def test_every_step_that_a_file_states_is_taken():
    config = {
        "do_resize": True,
        "size": {"shortest_edge": 256},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": 224,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "image_mean": [0.1, 0.2, 0.3],
        "image_std": [0.4, 0.5, 0.6],
        "do_flip_channel_order": True,
    }
    expected = Preprocessing((224, 224), 256, "bicubic", 1 / 255, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "BGR")
    assert read_configuration(config) == expected


def test_switched_off_steps_are_left_out():
    config = {"size": {"height": 96, "width": 128}, "do_rescale": False, "do_normalize": False, "image_mean": None}
    assert read_configuration(config) == Preprocessing((96, 128), (96, 128), scale=1.0)
    config = {"size": 256, "crop_size": [96, 128], "do_resize": False, "do_rescale": True}
    assert read_configuration(config) == Preprocessing((96, 128), None)
    without_effect = {"do_pad": False, "ensure_multiple_of": 1, "keep_aspect_ratio": False, "size_divisor": None}
    assert read_configuration({**config, **without_effect}) == Preprocessing((96, 128), None)


def test_an_integer_size_without_a_known_type_is_the_shorter_side_if_a_crop_follows():
    assert read_configuration({**IMAGENET, "size": 256, "crop_size": 224}).resize == 256
    assert read_configuration({**IMAGENET, "size": 256}).resize == (256, 256)
    assert read_configuration({**IMAGENET, "size": 256, "crop_size": 224, "default_to_square": True}).resize == (
        256,
        256,
    )


def test_a_file_silent_on_rescaling_is_read_by_the_scale_of_its_mean():
    assert read_configuration({"size": 224, "image_mean": 0.5, "image_std": 0.5}).scale == 1 / 255
    assert read_configuration({"size": 224, "image_mean": 127.5, "image_std": 127.5}).scale == 1.0
    assert read_configuration({"size": 224, "image_mean": 127.5, "image_std": 1, "do_rescale": True}).scale == 1 / 255


@pytest.mark.parametrize(
    ("value", "name"),
    [
        *enumerate(["nearest", "lanczos", "bilinear", "bicubic", "box", "hamming"]),
        ("bicubic", "bicubic"),
        ("PIL.Image.BICUBIC", "bicubic"),
        ("InterpolationMode.LANCZOS", "lanczos"),
        (None, "bilinear"),
    ],
)
def test_filters_are_read_by_code_and_by_name(value, name):
    assert read_configuration({**IMAGENET, "size": 224, "resample": value}).resample == name
    assert Preprocessing((8, 8), resample=name).resample == name


def test_poolformer_takes_its_fraction_of_both_sides_if_they_differ():
    config = {"image_processor_type": "PoolFormerImageProcessor", "crop_pct": 0.9}
    assert read_configuration({**config, "size": {"height": 224, "width": 180}}).resize == (248, 200)
    assert read_configuration({**config, "size": SQUARE}).resize == 248


def test_stages_that_change_nothing_are_allowed_and_factors_multiply():
    stages = [
        {"type": "convert_rgb"},
        {"type": "resize", "size": [224, 256], "interpolation": "bicubic"},
        {"type": "pad_to_size", "size": [224, 256]},
        {"type": "to_tensor"},
        {"type": "rescale", "rescale_factor": 0.5},
        {"type": "normalize", "mean": 0.5, "std": [0.4, 0.5, 0.6]},
    ]
    expected = Preprocessing((224, 256), (224, 256), "bicubic", 0.5 / 255, HALF, (0.4, 0.5, 0.6))
    assert read_configuration({"stages": stages}) == expected
    assert read_configuration({"val": [*stages[1:4], stages[0]]}).scale == 1 / 255


KNOWN = {**IMAGENET, "size": {"shortest_edge": 256}, "crop_size": 224}
CONVNEXT = {"image_processor_type": "ConvNextImageProcessor", **IMAGENET}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ([], r"must be a JSON object. Got \[\] instead"),
        ({"sktransfer": 1}, "states no input size: size is missing"),
        ({"do_resize": False, "size": 224}, "states no input size: neither crop_size nor size"),
        ({**IMAGENET, "size": {"shortest_edge": 256}}, "states no input size"),
        ({**IMAGENET, "crop_size": 224}, "states no input size: size is missing"),
        ({"size": 3}, "states no arithmetic: neither image_mean nor"),
        ({**KNOWN, "do_pad": True}, "do_pad must be absent or without effect: .* Got True instead"),
        ({**KNOWN, "do_thumbnail": True}, "do_thumbnail must be absent .* Got True"),
        ({**KNOWN, "do_something_new": True}, "do_something_new must be absent .* Got True"),
        ({**KNOWN, "size_divisor": 32}, "size_divisor must be absent .* Got 32"),
        ({**KNOWN, "ensure_multiple_of": 32}, "ensure_multiple_of must be absent .* Got 32"),
        ({**KNOWN, "keep_aspect_ratio": True}, "keep_aspect_ratio must be absent .* Got True"),
        ({**KNOWN, "crop_pct": 0.9}, "crop_pct must come with ConvNextImageProcessor .* Got crop_pct 0.9"),
        ({**KNOWN, "size": {"longest_edge": 256}}, "size must have height and width, or .* Got {'longest_edge': 256}"),
        ({**KNOWN, "size": {"shortest_edge": 8, "longest_edge": 9}}, "size must have height and width, or only short"),
        (
            {**KNOWN, "crop_size": {"shortest_edge": 8}},
            "crop_size must have height and width. Got {'shortest_edge': 8}",
        ),
        ({**KNOWN, "size": "224"}, "size must be made of integers >= 1. Got '224'"),
        ({**KNOWN, "size": 0}, "size must be made of integers >= 1. Got 0"),
        ({**KNOWN, "resample": 7}, "resample must be one of Pillow's 0 or 'nearest', .* Got 7"),
        ({**KNOWN, "resample": [3]}, r"resample must be one of Pillow's .* Got \[3\]"),
        ({**KNOWN, "resample": "random"}, "resample must be one of Pillow's .* Got 'random'"),
        ({**KNOWN, "image_mean": [0.5]}, r"image_mean must be three numbers, one a channel. Got \[0.5\]"),
        ({"do_normalize": True, "size": 224}, "image_mean must be three numbers, one a channel. Got None"),
        ({**KNOWN, "rescale_factor": "1/255"}, "rescale_factor must be a number > 0. Got '1/255'"),
        ({**KNOWN, "do_resize": "no"}, "do_resize must be true or false. Got 'no'"),
        ({**CONVNEXT, "size": SQUARE}, "size of ConvNextImageProcessor must be shortest_edge, .* Got size {'height'"),
        ({**CONVNEXT, "size": 224, "do_center_crop": True}, "no center_crop of its own. .* do_center_crop True"),
        ({"image_processor_type": "PerceiverImageProcessor"}, "must not be 'PerceiverImageProcessor', which crops"),
        ({"image_processor": "x"}, "must be a JSON object. Got 'x'"),
    ],
)
def test_what_transformers_files_cannot_mean_here_is_refused(config, message):
    with pytest.raises(ValueError, match=message):
        read_configuration(config)


TIMM = {"input_size": [3, 224, 224]}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"pretrained_cfg": {"mean": list(MEAN)}}, "states no input size: input_size is missing"),
        ({"pretrained_cfg": 3}, "pretrained_cfg must be a JSON object. Got 3"),
        ({"input_size": [1, 28, 28]}, r"input_size must be 3 channels, height and width. Got \[1, 28, 28\]"),
        ({**TIMM, "crop_mode": "border"}, "crop_mode must be 'center' or 'squash': .* Got 'border'"),
        ({"input_size": [3, 192, 256]}, r"crop_mode 'center' must come with a square size. Got .* \(219, 292\)"),
        ({**TIMM, "interpolation": "random"}, "interpolation must be one of Pillow's .* Got 'random'"),
        ({**TIMM, "crop_border_pixels": 4}, "crop_border_pixels must be absent .* Got 4"),
        ({"preprocess_cfg": {"resize_mode": "squash"}}, "states no input size: neither size nor image_size"),
        ({"preprocess_cfg": {"size": 224, "resize_mode": "longest"}}, "resize_mode must be 'shortest' or .* 'longest'"),
        ({"preprocess_cfg": {"size": [224, 112]}}, r"resize_mode 'shortest' must come .* Got .* \(224, 112\)"),
        ({"preprocess_cfg": {"size": 224, "mode": "L"}}, "mode must be 'RGB'. Got 'L'"),
    ],
)
def test_what_timm_and_open_clip_files_cannot_mean_here_is_refused(config, message):
    with pytest.raises(ValueError, match=message):
        read_configuration(config)


RESIZE, CROP, NORMALIZED = {"type": "resize", "size": 8}, {"type": "center_crop", "size": 8}, {"type": "normalize"}


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ("resize", "stages must be a list of stages. Got 'resize'"),
        ([{"type": "erase"}], "the stage 'erase' is unknown"),
        ([{"type": "pad_to_size", "size": 8}], "size of the stage 'pad_to_size' must be that of .* Got 8"),
        ([RESIZE, {"type": "pad_to_size", "size": 8}], "size of the stage 'pad_to_size' must be .* Got 8"),
        ([RESIZE], "states no input size: neither center_crop nor resize"),
        ([CROP, RESIZE], "the stage 'resize' must come once and before 'center_crop'"),
        ([RESIZE, RESIZE], "the stage 'resize' must come once"),
        ([{**RESIZE, "max_size": 9}], "max_size must be absent .* Got 9"),
        ([RESIZE, CROP, NORMALIZED], "mean must be three numbers, one a channel. Got None"),
        ([CROP, {"type": "rescale"}], "rescale_factor must be a number > 0. Got None"),
    ],
)
def test_what_stages_cannot_mean_here_is_refused(stages, message):
    with pytest.raises(ValueError, match=message):
        read_configuration({"stages": stages})
