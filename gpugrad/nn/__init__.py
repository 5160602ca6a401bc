"""Neural networks: modules, layers and activations; their functions, initialisers and the lecture's units beside them."""

from gpugrad.nn import functional, init, units
from gpugrad.nn.activations import (
    ELU,
    GELU,
    SELU,
    Activation,
    Hardsigmoid,
    Hardswish,
    Hardtanh,
    LeakyReLU,
    LogSigmoid,
    LogSoftmax,
    Mish,
    ReLU,
    Sigmoid,
    SiLU,
    Softmax,
    Softplus,
    Tanh,
)
from gpugrad.nn.layers import (
    AdaptiveAvgPool2d,
    AvgPool2d,
    BatchNorm1d,
    BatchNorm2d,
    Bilinear,
    Conv2d,
    Dropout,
    Embedding,
    Flatten,
    GroupNorm,
    Identity,
    LayerNorm,
    Linear,
    MaxPool2d,
    Residual,
    RMSNorm,
)
from gpugrad.nn.module import LoadResult, Module, ModuleDict, ModuleList, Parameter, Sequential, StateError
