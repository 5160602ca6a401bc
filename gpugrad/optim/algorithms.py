"""The optimisers: options with PyTorch's names and defaults, and which update op they drive. g is the gradient."""

from __future__ import annotations

import gpugrad as gg
from gpugrad.errors import DomainError, fail
from gpugrad.ops import optim as updates
from gpugrad.optim.optimizer import Group, NoDecay, Optimizer, Params

Grads = list["gg.Tensor | None"]


class SGD(Optimizer):
    """Gradient descent, with momentum, Nesterov momentum and L2 weight decay (g += weight_decay p).

    v = momentum v + (1 - dampening) g;  p -= lr v, PyTorch's form, in which a new lr acts on the whole velocity. The
    textbook form v = momentum v + lr g;  p -= v makes the same steps while lr is constant. nesterov:
    p -= lr (g + momentum v). The first gradient enters v undamped. Sutskever et al., 2013.
    """

    def __init__(
        self, params: Params, lr: float = 1e-3, momentum: float = 0.0, dampening: float = 0.0,
        weight_decay: float = 0.0, nesterov: bool = False, *, no_decay: NoDecay = False,
    ) -> None:  # fmt: skip
        if nesterov and (momentum <= 0 or dampening != 0):
            raise fail(DomainError, "SGD", f"nesterov needs momentum > 0 and no dampening, got {momentum}, {dampening}")
        super().__init__(
            params,
            {
                "lr": lr,
                "momentum": momentum,
                "dampening": dampening,
                "weight_decay": weight_decay,
                "nesterov": nesterov,
            },
            no_decay,
        )

    def slots(self, group: Group) -> dict[str, float]:
        """The velocity."""
        return {"momentum_buffer": 0.0} if group["momentum"] else {}

    def update(self, group: Group, grads: Grads) -> None:
        """One step."""
        updates.sgd(
            group["params"], group.slot("momentum_buffer", group["momentum"]),
            group.counters["step"], grads, group.rate, group.skip,
            momentum=group["momentum"], dampening=group["dampening"], weight_decay=group["weight_decay"],
            nesterov=group["nesterov"],
        )  # fmt: skip


class Adagrad(Optimizer):
    """s += g^2;  p -= lr / (1 + (t - 1) lr_decay) g / (sqrt(s) + eps). Duchi et al., 2011."""

    def __init__(
        self, params: Params, lr: float = 1e-2, lr_decay: float = 0.0, weight_decay: float = 0.0,
        initial_accumulator_value: float = 0.0, eps: float = 1e-10, *, no_decay: NoDecay = False,
    ) -> None:  # fmt: skip
        super().__init__(
            params,
            {"lr": lr, "lr_decay": lr_decay, "weight_decay": weight_decay,
             "initial_accumulator_value": initial_accumulator_value, "eps": eps},
            no_decay,
        )  # fmt: skip

    def slots(self, group: Group) -> dict[str, float]:
        """The sum of squared gradients."""
        return {"sum": group["initial_accumulator_value"]}

    def update(self, group: Group, grads: Grads) -> None:
        """One step."""
        updates.adagrad(
            group["params"], group.slot("sum"), group.counters["step"], grads, group.rate, group.skip,
            lr_decay=group["lr_decay"], eps=group["eps"], weight_decay=group["weight_decay"],
        )  # fmt: skip


class Adadelta(Optimizer):
    """p -= lr d with d = sqrt(e + eps) / sqrt(s + eps) g, where s and e are running means of g^2 and d^2.

    s = rho s + (1 - rho) g^2 before, e = rho e + (1 - rho) d^2 after d is formed. Zeiler, 2012.
    """

    def __init__(
        self, params: Params, lr: float = 1.0, rho: float = 0.9, eps: float = 1e-6, weight_decay: float = 0.0, *,
        no_decay: NoDecay = False,
    ) -> None:  # fmt: skip
        super().__init__(params, {"lr": lr, "rho": rho, "eps": eps, "weight_decay": weight_decay}, no_decay)

    def slots(self, group: Group) -> dict[str, float]:
        """Means of squared gradients and of squared steps."""
        return {"square_avg": 0.0, "acc_delta": 0.0}

    def update(self, group: Group, grads: Grads) -> None:
        """One step."""
        updates.adadelta(
            group["params"], group.slot("square_avg"), group.slot("acc_delta"),
            group.counters["step"], grads, group.rate, group.skip,
            rho=group["rho"], eps=group["eps"], weight_decay=group["weight_decay"],
        )  # fmt: skip


class RMSprop(Optimizer):
    """s = alpha s + (1 - alpha) g^2;  p -= lr g / (sqrt(s) + eps).

    centered: sqrt(s - a^2) with the mean gradient a = alpha a + (1 - alpha) g. momentum: v = momentum v + the
    scaled gradient;  p -= lr v. Hinton, 2012; Graves, 2013.
    """

    def __init__(
        self, params: Params, lr: float = 1e-2, alpha: float = 0.99, eps: float = 1e-8, weight_decay: float = 0.0,
        momentum: float = 0.0, centered: bool = False, *, no_decay: NoDecay = False,
    ) -> None:  # fmt: skip
        super().__init__(
            params,
            {"lr": lr, "alpha": alpha, "eps": eps, "weight_decay": weight_decay, "momentum": momentum,
             "centered": centered},
            no_decay,
        )  # fmt: skip

    def slots(self, group: Group) -> dict[str, float]:
        """Mean square, mean and velocity, as far as they are used."""
        more = {"grad_avg": group["centered"], "momentum_buffer": group["momentum"]}
        return {"square_avg": 0.0, **{name: 0.0 for name, used in more.items() if used}}

    def update(self, group: Group, grads: Grads) -> None:
        """One step."""
        updates.rmsprop(
            group["params"], group.slot("square_avg"), group.slot("grad_avg", group["centered"]),
            group.slot("momentum_buffer", group["momentum"]), group.counters["step"], grads, group.rate, group.skip,
            alpha=group["alpha"], eps=group["eps"], momentum=group["momentum"], weight_decay=group["weight_decay"],
        )  # fmt: skip


class Adam(Optimizer):
    """p -= lr m' / (sqrt(v') + eps), with m' = m / (1 - b1^t) and v' = v / (1 - b2^t) corrected for their start at 0.

    m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g^2.
    amsgrad: the largest v so far takes v's place. weight_decay is added to the gradient (L2). Kingma and Ba, 2015.
    """

    decoupled = False

    def __init__(
        self, params: Params, lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8,
        weight_decay: float = 0.0, amsgrad: bool = False, *, no_decay: NoDecay = False,
    ) -> None:  # fmt: skip
        super().__init__(
            params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "amsgrad": amsgrad}, no_decay
        )

    def slots(self, group: Group) -> dict[str, float]:
        """First and second moments, and the largest second moment for amsgrad."""
        return {"exp_avg": 0.0, "exp_avg_sq": 0.0, **({"max_exp_avg_sq": 0.0} if group["amsgrad"] else {})}

    def update(self, group: Group, grads: Grads) -> None:
        """One step."""
        beta1, beta2 = group["betas"]
        updates.adam(
            group["params"], group.slot("exp_avg"), group.slot("exp_avg_sq"),
            group.slot("max_exp_avg_sq", group["amsgrad"]), group.counters["step"], grads, group.rate,
            group.skip, beta1=beta1, beta2=beta2, eps=group["eps"], weight_decay=group["weight_decay"],
            decoupled=self.decoupled,
        )  # fmt: skip


class AdamW(Adam):
    """Adam with decoupled weight decay: p *= 1 - lr weight_decay before the step. Loshchilov and Hutter, 2019."""

    decoupled = True

    def __init__(
        self, params: Params, lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8,
        weight_decay: float = 1e-2, amsgrad: bool = False, *, no_decay: NoDecay = False,
    ) -> None:  # fmt: skip
        super().__init__(params, lr, betas, eps, weight_decay, amsgrad, no_decay=no_decay)


class Adamax(Optimizer):
    """m = b1 m + (1 - b1) g;  n = max(b2 n, |g| + eps);  p -= lr / (1 - b1^t) m / n. Kingma and Ba, 2015, section 7."""

    def __init__(
        self, params: Params, lr: float = 2e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8,
        weight_decay: float = 0.0, *, no_decay: NoDecay = False,
    ) -> None:  # fmt: skip
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}, no_decay)

    def slots(self, group: Group) -> dict[str, float]:
        """First moment and decaying maximum."""
        return {"exp_avg": 0.0, "exp_inf": 0.0}

    def update(self, group: Group, grads: Grads) -> None:
        """One step."""
        beta1, beta2 = group["betas"]
        updates.adamax(
            group["params"], group.slot("exp_avg"), group.slot("exp_inf"), group.counters["step"], grads, group.rate,
            group.skip, beta1=beta1, beta2=beta2, eps=group["eps"], weight_decay=group["weight_decay"],
        )  # fmt: skip


class Nadam(Optimizer):
    """Adam with Nesterov momentum: m' = mu_{t+1} m / (1 - prod_{t+1}) + (1 - mu_t) g / (1 - prod_t).

    mu_t = b1 (1 - 0.96^(t momentum_decay) / 2), prod_t = mu_1 ... mu_t;  p -= lr m' / (sqrt(v') + eps). Dozat, 2016.
    """

    counters = {"step": 0.0, "mu_product": 1.0}

    def __init__(
        self, params: Params, lr: float = 2e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8,
        weight_decay: float = 0.0, momentum_decay: float = 4e-3, *, no_decay: NoDecay = False,
    ) -> None:  # fmt: skip
        super().__init__(
            params,
            {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "momentum_decay": momentum_decay},
            no_decay,
        )

    def slots(self, group: Group) -> dict[str, float]:
        """First and second moments."""
        return {"exp_avg": 0.0, "exp_avg_sq": 0.0}

    def update(self, group: Group, grads: Grads) -> None:
        """One step."""
        beta1, beta2 = group["betas"]
        updates.nadam(
            group["params"], group.slot("exp_avg"), group.slot("exp_avg_sq"), group.counters["step"],
            group.counters["mu_product"], grads, group.rate, group.skip,
            beta1=beta1, beta2=beta2, eps=group["eps"], weight_decay=group["weight_decay"],
            momentum_decay=group["momentum_decay"],
        )  # fmt: skip
