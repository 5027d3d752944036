"""Small copies of the architectures that people take features from, with random weights.

Every network has `features(x)`, its penultimate activation (n, d), and `forward(x)`, its scores. What a head does
(poolings, reshapes, dropouts) is written in as many ways as the originals write it, because exporters turn each
into other nodes.
"""

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

CLASSES = 5
NETWORKS = {}


def network(name, size=32):
    """Register a network under `name`, for images of this height and width."""

    def register(cls):
        NETWORKS[name] = (cls, size)
        return cls

    return register


def build_network(name, seed=0):
    """The network in eval mode, and the size of its images."""
    cls, size = NETWORKS[name]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = cls()
        net.apply(_initialise)
    return net.eval(), size


def _initialise(module):
    """He-normal weights and the statistics of a network that has seen data."""
    if isinstance(module, (nn.Conv2d, nn.Linear)):
        nn.init.kaiming_normal_(module.weight)
        if module.bias is not None:
            nn.init.normal_(module.bias, std=0.1)
    elif isinstance(module, (nn.BatchNorm2d, nn.LayerNorm)):
        nn.init.uniform_(module.weight, 0.5, 1.5)
        nn.init.normal_(module.bias, std=0.1)
    if isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.running_mean, std=0.2)
        nn.init.uniform_(module.running_var, 0.5, 2.0)


def conv_bn(inputs, outputs, kernel=3, stride=1, groups=1, activation=nn.ReLU):
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), activation())


def bn_relu_conv(inputs, outputs, kernel=3, stride=1):
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(nn.BatchNorm2d(inputs), nn.ReLU(), conv)


class Network(nn.Module):
    """Scores are the head of the features."""

    def forward(self, x):
        return self.head(self.features(x))


class Residual(nn.Module):
    """Shortcut around `body`, with an activation behind the sum."""

    def __init__(self, body, shortcut=None, activation=None):
        super().__init__()
        self.body, self.shortcut = body, shortcut or nn.Identity()
        self.activation = activation or nn.Identity()

    def forward(self, x):
        return self.activation(self.body(x) + self.shortcut(x))


class SqueezeExcite(nn.Module):
    """Hu et al. 2018, arXiv:1709.01507."""

    def __init__(self, channels, gate=nn.Sigmoid):
        super().__init__()
        self.reduce, self.expand = nn.Conv2d(channels, channels // 4, 1), nn.Conv2d(channels // 4, channels, 1)
        self.gate = gate()

    def forward(self, x):
        return x * self.gate(self.expand(F.relu(self.reduce(x.mean((2, 3), keepdim=True)))))


class ChannelsFirstNorm(nn.Module):
    """LayerNorm over the channels of a map."""

    def __init__(self, channels):
        super().__init__()
        self.norm = nn.LayerNorm(channels, eps=1e-6)

    def forward(self, x):
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


# Chains


@network("alexnet")
class AlexNet(Network):
    def __init__(self):
        super().__init__()
        self.map = nn.Sequential(
            nn.Conv2d(3, 8, 5, 2, 2), nn.ReLU(), nn.MaxPool2d(3, 2), nn.Conv2d(8, 12, 3, padding=1), nn.ReLU()
        )
        self.fc6, self.fc7, self.head = nn.Linear(12 * 49, 16), nn.Linear(16, 14), nn.Linear(14, CLASSES)

    def features(self, x):
        x = self.map(x).view(-1, 12 * 49)
        return F.relu(self.fc7(F.dropout(F.relu(self.fc6(x)), training=self.training)))


@network("vgg_bn")
class VGG(Network):
    def __init__(self):
        super().__init__()
        self.map = nn.Sequential(
            conv_bn(3, 8), nn.MaxPool2d(2), conv_bn(8, 12), nn.MaxPool2d(2), nn.AdaptiveAvgPool2d((4, 4))
        )
        self.hidden = nn.Sequential(
            nn.Linear(12 * 16, 20), nn.ReLU(), nn.Dropout(), nn.Linear(20, 18), nn.ReLU(), nn.Dropout()
        )
        self.head = nn.Linear(18, CLASSES)

    def features(self, x):
        return self.hidden(torch.flatten(self.map(x), 1))


@network("squeezenet")
class SqueezeNet(Network):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 12, 3, 2), nn.ReLU(), nn.MaxPool2d(3, 2, ceil_mode=True))
        self.squeeze, self.one, self.three = nn.Conv2d(12, 4, 1), nn.Conv2d(4, 8, 1), nn.Conv2d(4, 8, 3, padding=1)
        self.classifier = nn.Sequential(nn.Dropout(), nn.Conv2d(16, 1000, 1), nn.ReLU(), nn.AdaptiveAvgPool2d((1, 1)))

    def map(self, x):
        x = F.relu(self.squeeze(self.stem(x)))
        return torch.cat([F.relu(self.one(x)), F.relu(self.three(x))], 1)

    def features(self, x):
        return self.map(x).mean((2, 3))

    def forward(self, x):
        return torch.flatten(self.classifier(self.map(x)), 1)


# Residual networks


def basic_block(inputs, outputs, stride=1):
    plain = nn.Sequential(conv_bn(inputs, outputs, 3, stride), conv_bn(outputs, outputs, activation=nn.Identity))
    shortcut = None if inputs == outputs else conv_bn(inputs, outputs, 1, stride, activation=nn.Identity)
    return Residual(plain, shortcut, nn.ReLU())


def bottleneck(inputs, outputs, stride=1, groups=1, excite=False):
    middle = outputs // 2
    body = [conv_bn(inputs, middle, 1), conv_bn(middle, middle, 3, stride, groups)]
    body += [conv_bn(middle, outputs, 1, activation=nn.Identity), *([SqueezeExcite(outputs)] if excite else [])]
    return Residual(nn.Sequential(*body), conv_bn(inputs, outputs, 1, stride, activation=nn.Identity), nn.ReLU())


class ResNet(Network):
    def __init__(self, *blocks):
        super().__init__()
        self.map = nn.Sequential(conv_bn(3, 8, 7, 2), nn.MaxPool2d(3, 2, 1), *blocks)
        self.pool, self.head = nn.AdaptiveAvgPool2d((1, 1)), nn.Linear(16, CLASSES)

    def features(self, x):
        return torch.flatten(self.pool(self.map(x)), 1)


@network("resnet_basic")
class ResNetBasic(ResNet):
    def __init__(self):
        super().__init__(basic_block(8, 8), basic_block(8, 16, 2))


@network("resnet_bottleneck", size=64)
class ResNetBottleneck(ResNet):
    def __init__(self):
        super().__init__(bottleneck(8, 16), bottleneck(16, 16, 2))


@network("regnet")
class RegNet(ResNet):
    def __init__(self):
        super().__init__(bottleneck(8, 16, 2, groups=4))

    def features(self, x):
        return self.map(x).mean(dim=[2, 3])

    def forward(self, x):
        return torch.sigmoid(super().forward(x))


@network("se_resnet")
class SEResNet(ResNet):
    def __init__(self):
        super().__init__(bottleneck(8, 16, excite=True))

    def features(self, x):
        x = F.avg_pool2d(self.map(x), 8)
        return x.view(x.size(0), -1)


@network("resnet_v2")
class PreActivationResNet(Network):
    """Scored by a convolution on the pooled map, as Big Transfer is (Kolesnikov et al. 2020, arXiv:1912.11370)."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.blocks = nn.Sequential(
            Residual(nn.Sequential(bn_relu_conv(8, 8), bn_relu_conv(8, 8))),
            Residual(nn.Sequential(bn_relu_conv(8, 8), bn_relu_conv(8, 16, 3, 2)), nn.Conv2d(8, 16, 1, 2)),
        )
        self.pool = nn.Sequential(nn.BatchNorm2d(16), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
        self.head = nn.Conv2d(16, CLASSES, 1)

    def features(self, x):
        return self.pool(self.blocks(self.stem(x))).flatten(1)

    def forward(self, x):
        return self.head(self.pool(self.blocks(self.stem(x))))[..., 0, 0]


@network("gem_head")
class GeneralisedMeanNetwork(Network):
    """Pooled by the generalised mean and scored without a bias, as networks for retrieval are."""

    def __init__(self):
        super().__init__()
        self.map = nn.Sequential(conv_bn(3, 8, 3, 2), basic_block(8, 16, 2))
        self.power, self.head = nn.Parameter(torch.tensor(3.0)), nn.Linear(16, CLASSES, bias=False)

    def features(self, x):
        x = self.map(x).clamp(min=1e-6).pow(self.power)
        return F.adaptive_avg_pool2d(x, 1).pow(1.0 / self.power).squeeze(-1).squeeze(-1)


# Branches


@network("inception")
class Inception(Network):
    """Changes the normalisation of its input, as torchvision's does; the auxiliary classifier is for training only."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(conv_bn(3, 8, 3, 2), nn.MaxPool2d(3, 2, ceil_mode=True))
        self.one = conv_bn(8, 6, 1)
        self.three = nn.Sequential(conv_bn(8, 4, 1), conv_bn(4, 6, 3))
        self.five = nn.Sequential(conv_bn(8, 4, 1), conv_bn(4, 6, 3), conv_bn(6, 6, 3))
        self.pooled = conv_bn(8, 4, 1)
        self.auxiliary, self.head = nn.Linear(22, CLASSES), nn.Linear(22, CLASSES)

    def features(self, x):
        channels = [torch.unsqueeze(x[:, i], 1) * scale + 0.1 for i, scale in enumerate((0.458, 0.448, 0.45))]
        x = self.stem(torch.cat(channels, 1))
        pooled = self.pooled(F.avg_pool2d(x, kernel_size=3, stride=1, padding=1))
        x = torch.cat([self.one(x), self.three(x), self.five(x), pooled], 1)
        return torch.flatten(F.dropout(F.adaptive_avg_pool2d(x, (1, 1)), training=self.training), 1)

    def forward(self, x):
        features = self.features(x)
        return (self.head(features), self.auxiliary(features)) if self.training else self.head(features)


@network("densenet")
class DenseNet(Network):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.layers = nn.ModuleList(
            nn.Sequential(bn_relu_conv(8 + 4 * index, 12, 1), bn_relu_conv(12, 4)) for index in range(3)
        )
        self.transition = nn.Sequential(bn_relu_conv(20, 14, 1), nn.AvgPool2d(2))
        self.norm, self.head = nn.BatchNorm2d(14), nn.Linear(14, CLASSES)

    def features(self, x):
        x = self.stem(x)
        for layer in self.layers:
            x = torch.cat((x, layer(x)), 1)
        x = F.relu(self.norm(self.transition(x)), inplace=True)
        return torch.flatten(F.adaptive_avg_pool2d(x, (1, 1)), 1)


@network("shufflenet")
class ShuffleNet(Network):
    def __init__(self):
        super().__init__()
        self.stem, self.last = conv_bn(3, 8, 3, 2), conv_bn(8, 20, 1)
        self.branch = nn.Sequential(conv_bn(4, 4, 1), conv_bn(4, 4, 3, 1, 4, activation=nn.Identity), conv_bn(4, 4, 1))
        self.head = nn.Linear(20, CLASSES)

    def features(self, x):
        kept, changed = self.stem(x).chunk(2, dim=1)
        x = torch.cat((kept, self.branch(changed)), dim=1)
        batch, channels, height, width = x.size()
        x = torch.transpose(x.view(batch, 2, channels // 2, height, width), 1, 2).contiguous()
        return self.last(x.view(batch, channels, height, width)).mean([2, 3])


# Separable convolutions


@network("mobilenet_v1")
class MobileNetV1(Network):
    """Pooled by a kernel of the size of the map and scored by a convolution, as in Keras."""

    def __init__(self):
        super().__init__()
        pair = [conv_bn(8, 8, 3, 1, 8, nn.ReLU6), conv_bn(8, 16, 1, activation=nn.ReLU6)]
        self.map = nn.Sequential(conv_bn(3, 8, 3, 2, activation=nn.ReLU6), *pair, conv_bn(16, 16, 3, 2, 16, nn.ReLU6))
        self.pool, self.head = nn.AvgPool2d(8), nn.Conv2d(16, CLASSES, 1)

    def features(self, x):
        return self.pool(self.map(x)).reshape(-1, 16)

    def forward(self, x):
        return F.softmax(self.head(F.dropout(self.pool(self.map(x)), 0.001, self.training)).flatten(1), dim=1)


def inverted_residual(channels, expansion=3, activation=nn.ReLU6, gate=None):
    inner = channels * expansion
    body = [conv_bn(channels, inner, 1, activation=activation), conv_bn(inner, inner, 3, 1, inner, activation)]
    body += [SqueezeExcite(inner, gate)] if gate else []
    return Residual(nn.Sequential(*body, conv_bn(inner, channels, 1, activation=nn.Identity)))


@network("mobilenet_v2")
class MobileNetV2(Network):
    def __init__(self):
        super().__init__()
        stem, last = conv_bn(3, 8, 3, 2, activation=nn.ReLU6), conv_bn(8, 24, 1, activation=nn.ReLU6)
        self.map = nn.Sequential(stem, inverted_residual(8), last)
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(24, CLASSES))

    def features(self, x):
        return nn.functional.adaptive_avg_pool2d(self.map(x), (1, 1)).reshape(x.shape[0], -1)

    def forward(self, x):
        return self.classifier(self.features(x))


@network("mobilenet_v3")
class MobileNetV3(Network):
    """Two linear layers behind the pooling; the features are those between them."""

    def __init__(self):
        super().__init__()
        stem, last = conv_bn(3, 8, 3, 2, activation=nn.Hardswish), conv_bn(8, 24, 1, activation=nn.Hardswish)
        block = inverted_residual(8, activation=nn.Hardswish, gate=nn.Hardsigmoid)
        self.map, self.pool = nn.Sequential(stem, block, last), nn.AdaptiveAvgPool2d(1)
        self.hidden = nn.Sequential(nn.Linear(24, 18), nn.Hardswish(inplace=True), nn.Dropout(0.2, inplace=True))
        self.head = nn.Linear(18, CLASSES)

    def features(self, x):
        return self.hidden(torch.flatten(self.pool(self.map(x)), 1))


@network("mobilenet_v3_conv")
class MobileNetV3Conv(MobileNetV3):
    """The first of the two layers as a convolution on the pooled map, as timm writes it."""

    def __init__(self):
        super().__init__()
        self.hidden = nn.Sequential(nn.Conv2d(24, 18, 1), nn.Hardswish(), nn.Flatten(1))

    def features(self, x):
        return self.hidden(self.pool(self.map(x)))


@network("efficientnet")
class EfficientNet(MobileNetV2):
    def __init__(self):
        super().__init__()
        stem, last = conv_bn(3, 8, 3, 2, activation=nn.SiLU), conv_bn(8, 24, 1, activation=nn.SiLU)
        self.map = nn.Sequential(stem, inverted_residual(8, activation=nn.SiLU, gate=nn.Sigmoid), last)

    def forward(self, x):
        return F.log_softmax(super().forward(x), dim=-1)


@network("xception")
class Xception(Network):
    def __init__(self):
        super().__init__()
        separable = [nn.Conv2d(8, 8, 3, 1, 1, groups=8, bias=False), nn.Conv2d(8, 16, 1, bias=False)]
        body = nn.Sequential(nn.ReLU(), *separable, nn.BatchNorm2d(16), nn.MaxPool2d(3, 2, 1))
        self.entry = nn.Sequential(conv_bn(3, 8, 3, 2), Residual(body, conv_bn(8, 16, 1, 2, activation=nn.Identity)))
        self.exit = nn.Sequential(nn.Conv2d(16, 16, 3, 1, 1, groups=16), nn.Conv2d(16, 20, 1), nn.BatchNorm2d(20))
        self.head = nn.Linear(20, CLASSES)

    def features(self, x):
        return F.adaptive_avg_pool2d(F.relu(self.exit(self.entry(x))), (1, 1)).flatten(1)


# Normalised over the channels, and attention


class ConvNeXtBlock(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm, self.scale = nn.LayerNorm(channels, eps=1e-6), nn.Parameter(0.5 * torch.ones(channels))
        self.expand, self.reduce = nn.Linear(channels, 3 * channels), nn.Linear(3 * channels, channels)

    def forward(self, x):
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        return x + (self.scale * self.reduce(F.gelu(self.expand(y)))).permute(0, 3, 1, 2)


@network("convnext")
class ConvNeXt(Network):
    """Normalises behind the pooling, so the features are those of the normalisation."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 12, 4, 4), ChannelsFirstNorm(12))
        self.blocks, self.norm = nn.Sequential(ConvNeXtBlock(12), ConvNeXtBlock(12)), ChannelsFirstNorm(12)
        self.head = nn.Linear(12, CLASSES)

    def features(self, x):
        return self.norm(F.adaptive_avg_pool2d(self.blocks(self.stem(x)), 1)).flatten(1)


class Attention(nn.Module):
    def __init__(self, width, heads=2):
        super().__init__()
        self.heads, self.qkv, self.project = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x):
        batch, tokens, width = x.shape
        parts = self.qkv(x).reshape(batch, tokens, 3, self.heads, width // self.heads)
        q, k, v = parts.permute(2, 0, 3, 1, 4).unbind(0)
        weights = ((q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)).softmax(dim=-1)
        return self.project((weights @ v).transpose(1, 2).reshape(batch, tokens, width))


class SelfAttention(nn.MultiheadAttention):
    def forward(self, x):
        return super().forward(x, x, x, need_weights=False)[0]


def transformer_block(width, attention):
    hidden = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
    return nn.Sequential(Residual(nn.Sequential(nn.LayerNorm(width), attention)), Residual(hidden))


class Transformer(Network):
    """Tokens of 8x8 pixels."""

    def __init__(self, extra_tokens, attention):
        super().__init__()
        self.patches = nn.Conv2d(3, 12, 8, 8)
        self.extra = nn.Parameter(torch.randn(1, extra_tokens, 12))
        self.position = nn.Parameter(torch.randn(1, 16 + extra_tokens, 12))
        self.blocks = nn.Sequential(transformer_block(12, attention), nn.LayerNorm(12))
        self.head = nn.Linear(12, CLASSES)

    def tokens(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.extra.expand(x.shape[0], -1, -1), x], dim=1)
        return self.blocks(x + self.position)


@network("vit_class_token")
class ClassTokenTransformer(Transformer):
    def __init__(self):
        super().__init__(1, Attention(12))

    def features(self, x):
        return self.tokens(x)[:, 0]


@network("vit_torchvision")
class TorchvisionTransformer(Transformer):
    """Attention by the module that torch brings, and the class token taken first, normalised later."""

    def __init__(self):
        super().__init__(1, SelfAttention(12, 2, batch_first=True))
        self.norm = nn.LayerNorm(12)

    def features(self, x):
        return self.norm(self.tokens(x)[:, 0, :])


@network("vit_mean")
class MeanTransformer(Transformer):
    """The mean of the patches is normalised; a class token is there and not used."""

    def __init__(self):
        super().__init__(1, Attention(12))
        self.norm = nn.LayerNorm(12)

    def features(self, x):
        return self.norm(self.tokens(x)[:, 1:].mean(dim=1))


class TokenMixing(nn.Module):
    def __init__(self, tokens, width):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.mix = nn.Sequential(nn.Linear(tokens, 8), nn.GELU(), nn.Linear(8, tokens))

    def forward(self, x):
        return x + self.mix(self.norm(x).transpose(1, 2)).transpose(1, 2)


@network("mixer")
class Mixer(Transformer):
    def __init__(self):
        super().__init__(1, Attention(12))
        self.blocks = nn.Sequential(TokenMixing(16, 12), nn.LayerNorm(12))

    def features(self, x):
        return self.blocks(self.patches(x).flatten(2).transpose(1, 2)).mean(dim=1)


@network("swin")
class Swin(Network):
    """Attention in shifted windows of 4x4 tokens, channels last."""

    def __init__(self):
        super().__init__()
        self.patches, self.norm, self.window = nn.Conv2d(3, 12, 4, 4), nn.LayerNorm(12), Attention(12)
        self.last, self.head = nn.LayerNorm(12), nn.Linear(12, CLASSES)

    def features(self, x):
        x = self.patches(x).permute(0, 2, 3, 1)
        y = torch.roll(self.norm(x), shifts=(-2, -2), dims=(1, 2))
        batch, height, width, channels = y.shape
        y = y.view(batch, height // 4, 4, width // 4, 4, channels).permute(0, 1, 3, 2, 4, 5).reshape(-1, 16, channels)
        y = self.window(y).view(-1, height // 4, width // 4, 4, 4, channels).permute(0, 1, 3, 2, 4, 5)
        y = torch.roll(y.reshape(-1, height, width, channels), shifts=(2, 2), dims=(1, 2))
        return self.last(x + y).permute(0, 3, 1, 2).mean((2, 3))


# Without a classifier


@network("headless_map")
class HeadlessMap(Network):
    """Returns its last map; the features are the mean of it."""

    def __init__(self):
        super().__init__()
        self.map = nn.Sequential(conv_bn(3, 8, 3, 2), basic_block(8, 16, 2))

    def features(self, x):
        return self.map(x).mean((2, 3))

    def forward(self, x):
        return self.map(x)


@network("headless_vector")
class HeadlessVector(HeadlessMap):
    """Returns its features, as networks exported with their classifier replaced by an identity do."""

    def forward(self, x):
        return self.features(x)


@network("headless_tokens")
class HeadlessTokens(ClassTokenTransformer):
    """Returns all its tokens; the features are the first one, the class token."""

    def forward(self, x):
        return self.tokens(x)


@network("headless_class_token")
class HeadlessClassToken(ClassTokenTransformer):
    """Returns its class token, as networks trained without classes do."""

    def forward(self, x):
        return self.features(x)


@network("headless_projection")
class HeadlessProjection(ClassTokenTransformer):
    """Returns a linear projection of length one, as networks trained on images and texts do."""

    def __init__(self):
        super().__init__()
        self.project = nn.Linear(12, 8, bias=False)

    def features(self, x):
        return F.normalize(self.project(super().features(x)), dim=-1)

    def forward(self, x):
        return self.features(x)
