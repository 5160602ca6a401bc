"""Samples for gpugrad/ops/activation.py."""

from . import S, away, normal, uniform

wide = uniform(-6, 6, 12)

SAMPLES = {
    "relu": [S(away(3, 4))],
    "relu_bwd": [S(normal(3, 4), away(3, 4))],
    "leaky_relu": [S(away(3, 4), negative_slope=0.1)],
    "leaky_relu_bwd": [S(normal(3, 4), away(3, 4), negative_slope=0.1)],
    "elu": [
        S(away(3, 4), alpha=1.0, rate=1.0, scale=1.0),
        S(away(3, 4), alpha=1.7, rate=1.0, scale=1.05),
        S(away(3, 4), alpha=2.0, rate=0.5, scale=1.0),
    ],
    "elu_bwd": [S(normal(3, 4), away(3, 4), alpha=1.7, rate=0.6, scale=1.05)],
    "sigmoid": [S(normal(3, 4)), S(wide)],
    "sigmoid_bwd": [S(normal(3, 4), uniform(0.0, 1.0, 3, 4))],
    "tanh_bwd": [S(normal(3, 4), uniform(-1.0, 1.0, 3, 4))],
    "log_sigmoid": [S(normal(3, 4)), S(wide)],
    "softplus": [S(normal(3, 4), beta=1.0), S(wide, beta=0.7)],
    "softplus_bwd": [S(normal(3, 4), normal(3, 4), beta=1.0), S(normal(12), wide, beta=-0.7)],
    "softsign": [S(away(3, 4))],
    "logit": [S(uniform(0.1, 0.9, 3, 4))],
    "gelu": [S(normal(3, 4), approximate=a) for a in ("none", "tanh")],
    "gelu_bwd": [S(normal(3, 4), normal(3, 4), approximate=a) for a in ("none", "tanh")],
    "silu": [S(normal(3, 4)), S(wide)],
    "silu_bwd": [S(normal(3, 4), normal(3, 4)), S(normal(12), wide)],
    "mish": [S(normal(3, 4)), S(wide)],
    "mish_bwd": [S(normal(3, 4), normal(3, 4)), S(normal(12), wide)],
    "bias_act": [S(normal(2, 3, 4), normal(4), kind=k) for k in ("gelu", "gelu_tanh", "silu")],
    "bias_act_out": [
        *(S(normal(5, 4), normal(4), kind=k) for k in ("sigmoid", "tanh")),
        S(away(5, 4), uniform(-0.01, 0.01, 4), kind="relu"),
        S(normal(4), normal(4), kind="tanh"),
    ],
    "bias_act_bwd": [
        *(S(normal(5, 4), normal(5, 4), normal(4), kind=k) for k in ("gelu", "gelu_tanh", "silu")),
        *(S(normal(2, 3, 4), away(2, 3, 4), None, kind=k) for k in ("relu", "sigmoid", "tanh")),
    ],
    "hardsigmoid": [S(away(3, 4, points=(-3.0, 3.0))), S(3 * away(8, points=(-1.0, 1.0)))],
    "hardswish": [S(away(3, 4, points=(-3.0, 3.0))), S(3 * away(8, points=(-1.0, 1.0)))],
    "hardswish_bwd": [S(normal(3, 4), away(3, 4, points=(-3.0, 3.0))), S(normal(8), 3 * away(8, points=(-1.0, 1.0)))],
    "tanhshrink": [S(normal(3, 4))],
    "softshrink": [S(away(3, 4, points=(-0.5, 0.5)), lambd=0.5)],
}
