// The math of elementwise kernels, one struct a function: hand-written and generated kernels share them.
//
// Plain C++ on Acc values (float or double), no CUDA builtin but __umul64hi, so that a host compiler reads it as well; there
// host/math.h stands in for CUDA's functions. A functor is called with the operands in the op's order; the NumPy twin is the
// op's forward in gpugrad/ops. The name of an op is that of its functor: log_sigmoid is LogSigmoid::value, silu_bwd is
// Silu::back, and gelu with approximate='tanh' is GeluTanh::value (see gpugrad/chain.py).
#pragma once

#ifndef GG_HOST
__device__ __forceinline__ float exponential(float x) { return expf(x); }
__device__ __forceinline__ double exponential(double x) { return exp(x); }
__device__ __forceinline__ float logarithm(float x) { return logf(x); }
__device__ __forceinline__ double logarithm(double x) { return log(x); }
__device__ __forceinline__ float exp_minus_one(float x) { return expm1f(x); }
__device__ __forceinline__ double exp_minus_one(double x) { return expm1(x); }
__device__ __forceinline__ float log_one_plus(float x) { return log1pf(x); }
__device__ __forceinline__ double log_one_plus(double x) { return log1p(x); }
__device__ __forceinline__ float hyperbolic_tangent(float x) { return tanhf(x); }
__device__ __forceinline__ double hyperbolic_tangent(double x) { return tanh(x); }
__device__ __forceinline__ float erf_complement(float x) { return erfcf(x); }
__device__ __forceinline__ double erf_complement(double x) { return erfc(x); }
__device__ __forceinline__ float square_root(float x) { return sqrtf(x); }
__device__ __forceinline__ double square_root(double x) { return sqrt(x); }
__device__ __forceinline__ float sine(float x) { return sinf(x); }
__device__ __forceinline__ double sine(double x) { return sin(x); }
__device__ __forceinline__ float cosine(float x) { return cosf(x); }
__device__ __forceinline__ double cosine(double x) { return cos(x); }
__device__ __forceinline__ float power(float x, float y) { return powf(x, y); }
__device__ __forceinline__ double power(double x, double y) { return pow(x, y); }
#endif

// What a formula calls a, b and c; zero where it does not.
template <class A> struct Options { A a, b, c; };

// --- arithmetic, choice and comparison: value(x, ...) ----------------------------------------------------------------
//
// NaN passes through Maximum and Minimum. The _bound forms are those of an op whose second operand is constant.

struct Add {
    template <class A> static __device__ __forceinline__ A value(A x, A y) { return x + y; }
};
struct Subtract {
    template <class A> static __device__ __forceinline__ A value(A x, A y) { return x - y; }
};
struct Multiply {
    template <class A> static __device__ __forceinline__ A value(A x, A y) { return x * y; }
};
struct Divide {
    template <class A> static __device__ __forceinline__ A value(A x, A y) { return x / y; }
};
struct Negative {
    template <class A> static __device__ __forceinline__ A value(A x) { return -x; }
};
struct Positive {
    template <class A> static __device__ __forceinline__ A value(A x) { return x; }
};
struct Reciprocal {
    template <class A> static __device__ __forceinline__ A value(A x) { return 1 / x; }
};
struct Square {
    template <class A> static __device__ __forceinline__ A value(A x) { return x * x; }
};
struct Sqrt {
    template <class A> static __device__ __forceinline__ A value(A x) { return square_root(x); }
};
struct Abs {
    template <class A> static __device__ __forceinline__ A value(A x) { return x > 0 ? x : 0 - x; }
};
struct Sign {
    template <class A> static __device__ __forceinline__ A value(A x) { return x > 0 ? A(1) : x < 0 ? A(-1) : x == 0 ? A(0) : x; }
};
struct Exp {
    template <class A> static __device__ __forceinline__ A value(A x) { return exponential(x); }
};
struct Expm1 {
    template <class A> static __device__ __forceinline__ A value(A x) { return exp_minus_one(x); }
};
struct Log {
    template <class A> static __device__ __forceinline__ A value(A x) { return logarithm(x); }
};
struct Log1p {
    template <class A> static __device__ __forceinline__ A value(A x) { return log_one_plus(x); }
};
struct Sin {
    template <class A> static __device__ __forceinline__ A value(A x) { return sine(x); }
};
struct Cos {
    template <class A> static __device__ __forceinline__ A value(A x) { return cosine(x); }
};
struct Pow {
    template <class A> static __device__ __forceinline__ A value(A x, A y) { return power(x, y); }
};
struct Maximum {
    template <class A> static __device__ __forceinline__ A value(A x, A y) { return (x >= y) | (x != x) ? x : y; }
};
struct Minimum {
    template <class A> static __device__ __forceinline__ A value(A x, A y) { return (x <= y) | (x != x) ? x : y; }
};
struct Where {
    template <class A> static __device__ __forceinline__ A value(bool c, A x, A y) { return c ? x : y; }
};
struct Absorb {
    template <class A> static __device__ __forceinline__ A value(A t, A slope) { return t * (t == 0 ? A(0) : slope); }
};
struct Quotient {
    template <class A> static __device__ __forceinline__ A value(A t, A d) { return t / (t == 0 ? A(1) : d); }
};
struct Equal {
    template <class A> static __device__ __forceinline__ bool value(A x, A y) { return x == y; }
};
struct NotEqual {
    template <class A> static __device__ __forceinline__ bool value(A x, A y) { return x != y; }
};
struct Less {
    template <class A> static __device__ __forceinline__ bool value(A x, A y) { return x < y; }
};
struct LessEqual {
    template <class A> static __device__ __forceinline__ bool value(A x, A y) { return x <= y; }
};
struct Greater {
    template <class A> static __device__ __forceinline__ bool value(A x, A y) { return x > y; }
};
struct GreaterEqual {
    template <class A> static __device__ __forceinline__ bool value(A x, A y) { return x >= y; }
};
struct Isnan {
    template <class A> static __device__ __forceinline__ bool value(A x) { return x != x; }
};
struct Isfinite {
    template <class A> static __device__ __forceinline__ bool value(A x) { return x - x == 0; }
};
struct LogicalAnd {
    template <class A> static __device__ __forceinline__ bool value(bool x, bool y) { return x & y; }
};
struct LogicalOr {
    template <class A> static __device__ __forceinline__ bool value(bool x, bool y) { return x | y; }
};
struct LogicalNot {
    template <class A> static __device__ __forceinline__ bool value(bool x) { return !x; }
};
struct Clip {
    template <class A> static __device__ __forceinline__ A value(A x, A low, A high) {
        return Minimum::value(Maximum::value(x, low), high);
    }
};
struct Isinf {
    template <class A> static __device__ __forceinline__ bool value(A x) { return (x == x) & !(x - x == 0); }
};
// g, but 0 where that is NaN and t is 0 or, if a is not 0, infinite.
struct Absorbed {
    template <class A> static __device__ __forceinline__ A value(A g, A t, Options<A> o) {
        return (g != g) & ((t == 0) | ((o.a != 0) & Isinf::value(t))) ? A(0) : g;
    }
};
using MaximumBound = Maximum;
using MinimumBound = Minimum;
using BitwiseAnd = LogicalAnd; // of masks
using BitwiseOr = LogicalOr;
using BitwiseInvert = LogicalNot;

// --- activations: value(x) and back(t, v), t times the derivative ---------------------------------------------------
//
// v is the output for Relu, Elu, Sigmoid and Tanh, the input for the others. A unit that is off gives 0 whatever t is.
// Nothing overflows on the way to a finite result, and small results keep their digits: 1 + tanh and 1 + erf do not.

// 1 / (1 + exp(-x)), and its derivative.
template <class A> __device__ __forceinline__ A logistic(A x) {
    A e = exponential(x < 0 ? x : -x);
    return (x < 0 ? e : A(1)) / (1 + e);
}
template <class A> __device__ __forceinline__ A logistic_slope(A x) {
    A e = exponential(x < 0 ? x : -x);
    return e / ((1 + e) * (1 + e));
}

// max(x, 0).
struct Relu {
    template <class A> static __device__ __forceinline__ A value(A x, Options<A>) { return x <= 0 ? A(0) : x; }
    template <class A> static __device__ __forceinline__ A back(A t, A out, Options<A>) { return out <= 0 ? A(0) : t; }
};

// x above 0, a x elsewhere.
struct LeakyRelu {
    template <class A> static __device__ __forceinline__ A value(A x, Options<A> o) { return x > 0 ? x : o.a * x; }
    template <class A> static __device__ __forceinline__ A back(A t, A x, Options<A> o) { return x > 0 ? t : o.a * t; }
};

// c x above 0, c a (exp(b x) - 1) elsewhere, a b > 0.
struct Elu {
    template <class A> static __device__ __forceinline__ A value(A x, Options<A> o) {
        return o.c * (x > 0 ? x : o.a * exp_minus_one(o.b * x));
    }
    template <class A> static __device__ __forceinline__ A back(A t, A out, Options<A> o) {
        return t * (out > 0 ? o.c : o.b * (out + o.c * o.a));
    }
};

// x within [-800, high], NaN included: beyond, gates and their slopes are 0 or 1, not 0 times infinity.
template <class A> __device__ __forceinline__ A bounded(A x, A high = A(800)) { return x < -800 ? A(-800) : x > high ? high : x; }

// x Phi(x), Phi the normal distribution function.
struct Gelu {
    template <class A> static __device__ __forceinline__ A phi(A x) {
        return A(0.5) * erf_complement(x * A(-0.70710678118654752440));
    }
    template <class A> static __device__ __forceinline__ A value(A x, Options<A>) { return bounded(x, x) * phi(x); }
    template <class A> static __device__ __forceinline__ A back(A t, A x, Options<A>) {
        x = bounded(x);
        return t * (phi(x) + x * exponential(A(-0.5) * x * x) * A(0.39894228040143267794)); // 1 / sqrt(2 pi)
    }
};

// x (1 + tanh(u)) / 2 = x logistic(2 u), u = sqrt(2 / pi) (x + 0.044715 x^3).
struct GeluTanh {
    template <class A> static __device__ __forceinline__ A twice_u(A x) {
        return x * (A(1.59576912160573071176) + A(0.0713548162726002527220) * (x * x));
    }
    template <class A> static __device__ __forceinline__ A value(A x, Options<A>) {
        return bounded(x, x) * logistic(twice_u(x));
    }
    template <class A> static __device__ __forceinline__ A back(A t, A x, Options<A>) {
        x = bounded(x);
        A z = twice_u(x), dz = A(1.59576912160573071176) + A(0.214064448817800758166) * (x * x);
        return t * (logistic(z) + x * logistic_slope(z) * dz);
    }
};

// x logistic(x).
struct Silu {
    template <class A> static __device__ __forceinline__ A value(A x, Options<A>) { return bounded(x, x) * logistic(x); }
    template <class A> static __device__ __forceinline__ A back(A t, A x, Options<A>) {
        x = bounded(x);
        return t * (logistic(x) + x * logistic_slope(x));
    }
};

// 1 / (1 + exp(-x)).
struct Sigmoid {
    template <class A> static __device__ __forceinline__ A value(A x, Options<A>) { return logistic(x); }
    template <class A> static __device__ __forceinline__ A back(A t, A out, Options<A>) { return t * (out * (1 - out)); }
};

struct Tanh {
    template <class A> static __device__ __forceinline__ A value(A x, Options<A>) { return hyperbolic_tangent(x); }
    template <class A> static __device__ __forceinline__ A back(A t, A out, Options<A>) { return t * ((1 - out) * (1 + out)); }
};

// log(1 + exp(a x)) / a; log_sigmoid is that with a = -1.
struct Softplus {
    template <class A> static __device__ __forceinline__ A value(A x, Options<A> o) {
        A z = o.a * x;
        return ((z > 0 ? z : A(0)) + log_one_plus(exponential(z < 0 ? z : -z))) / o.a;
    }
    template <class A> static __device__ __forceinline__ A back(A t, A x, Options<A> o) { return t * logistic(o.a * x); }
};

// log(1 / (1 + exp(-x))).
struct LogSigmoid {
    template <class A> static __device__ __forceinline__ A value(A x) { return Softplus::value(x, Options<A>{A(-1), 0, 0}); }
};

struct Softsign {
    template <class A> static __device__ __forceinline__ A value(A x) { return x / (1 + (x < 0 ? -x : x)); }
};

struct Tanhshrink {
    template <class A> static __device__ __forceinline__ A value(A x) { return x - hyperbolic_tangent(x); }
};

// max(x, 0) - x y + log(1 + exp(-|x|)).
struct BceLogits {
    template <class A> static __device__ __forceinline__ A value(A x, A y) {
        return ((x > 0) | (x != x) ? x : A(0)) - x * y + log_one_plus(exponential(x < 0 ? x : -x));
    }
};

// x tanh(log(1 + e)) = x n / (n + 2), e = exp(x), n = e (e + 2). From 20 on the fraction is 1.
struct Mish {
    template <class A> static __device__ __forceinline__ A value(A x, Options<A>) {
        A e = exponential(x > 20 ? A(20) : x), n = e * (e + 2);
        return bounded(x, x) * (n / (n + 2));
    }
    template <class A> static __device__ __forceinline__ A back(A t, A x, Options<A>) {
        x = bounded(x, A(20));
        A e = exponential(x), n = e * (e + 2), d = n + 2;
        return t * ((n + x * (4 * e) * ((e + 1) / d)) / d);
    }
};

// x / 6 + 1/2 clipped to [0, 1].
struct Hardsigmoid {
    template <class A> static __device__ __forceinline__ A value(A x) { return Clip::value(x / 6 + A(0.5), A(0), A(1)); }
};

// x moved towards 0 by a.
struct Softshrink {
    template <class A> static __device__ __forceinline__ A value(A x, Options<A> o) { return x - Clip::value(x, -o.a, o.a); }
};

// x times x / 6 + 1/2 clipped to [0, 1].
struct Hardswish {
    template <class A> static __device__ __forceinline__ A value(A x, Options<A>) {
        A h = x * A(1.0 / 6) + A(0.5);
        return x * (h < 0 ? A(0) : h > 1 ? A(1) : h);
    }
    template <class A> static __device__ __forceinline__ A back(A t, A x, Options<A>) {
        return x <= -3 ? A(0) : x >= 3 ? t : t * (x * A(1.0 / 3) + A(0.5));
    }
};

// --- random numbers -------------------------------------------------------------------------------------------------

// Philox 4x64-10 (Salmon et al., SC 2011): four random words, a function of a counter and a key.
struct Philox {
    unsigned long long word[4];

    // The words that numpy.random.Philox(key=(k0, k1), counter=c) gives as its block number `block`, from 0.
    __device__ __forceinline__ Philox(unsigned long long c, unsigned long long block, unsigned long long k0, unsigned long long k1) {
        unsigned long long a = c + block + 1, b = a <= block, x = 0, y = 0; // NumPy counts up, with carry, before a block
#pragma unroll
        for (int round = 0; round < 10; round++) {
            unsigned long long high0 = __umul64hi(0xd2e7470ee14c6c93ull, a), low0 = 0xd2e7470ee14c6c93ull * a;
            unsigned long long high1 = __umul64hi(0xca5a826395121157ull, x), low1 = 0xca5a826395121157ull * x;
            a = high1 ^ b ^ k0, b = low1, x = high0 ^ y ^ k1, y = low0;
            k0 += 0x9e3779b97f4a7c15ull, k1 += 0xbb67ae8584caa73bull;
        }
        word[0] = a, word[1] = b, word[2] = x, word[3] = y;
    }

    // The k-th of eight words of 32 bits: halves of the long ones, the low one first.
    __device__ __forceinline__ unsigned half_word(int k) const { return unsigned(word[k / 2] >> k % 2 * 32); }
};

// --- optimiser steps ------------------------------------------------------------------------------------------------
//
// step(p, g, s, c) moves a parameter p and its states s by the gradient g; c are coefficients that prepare(c, o, now) forms for
// a tensor from the settings o, in the order in which each struct names them. decay: of the weights, as c[1] p added to g.

// A tensor's learning rate, the number of this step, from 1, and the product of its momenta before it (of Nadam).
struct Clock { double lr, t, product; };

template <class A> __device__ __forceinline__ A decayed(A g, A p, const A* c) { return c[1] != 0 ? g + c[1] * p : g; }

struct Stepping {
    static constexpr bool param = true, grad = true;
    static __device__ __forceinline__ double momentum(const double*, double) { return 1; }
};

// p -= lr g; settings: decay.
struct Sgd : Stepping {
    static constexpr int states = 0;
    template <class A> static __device__ __forceinline__ void prepare(A* c, const double* o, Clock now) {
        c[0] = A(now.lr), c[1] = A(o[0]);
    }
    template <class A> static __device__ __forceinline__ void step(A& p, A g, A*, const A* c) { p -= c[0] * decayed(g, p, c); }
};

// v = momentum v + (1 - dampening) g, the first g undamped; p -= lr v, or lr (g + momentum v). Settings: decay, momentum,
// dampening, whether nesterov.
struct Momentum : Stepping {
    static constexpr int states = 1;
    template <class A> static __device__ __forceinline__ void prepare(A* c, const double* o, Clock now) {
        c[0] = A(now.lr), c[1] = A(o[0]), c[2] = A(o[1]), c[3] = A(now.t == 1 ? 1 : 1 - o[2]), c[4] = A(o[3]);
    }
    template <class A> static __device__ __forceinline__ void step(A& p, A g, A* s, const A* c) {
        g = decayed(g, p, c);
        s[0] = c[2] * s[0] + c[3] * g;
        p -= c[0] * (c[4] != 0 ? g + c[2] * s[0] : s[0]);
    }
};

// s += g^2; p -= lr / (1 + (t - 1) lr_decay) g / (sqrt(s) + eps). Settings: decay, lr_decay, eps.
struct Adagrad : Stepping {
    static constexpr int states = 1;
    template <class A> static __device__ __forceinline__ void prepare(A* c, const double* o, Clock now) {
        c[0] = A(now.lr / (1 + (now.t - 1) * o[1])), c[1] = A(o[0]), c[2] = A(o[2]);
    }
    template <class A> static __device__ __forceinline__ void step(A& p, A g, A* s, const A* c) {
        g = decayed(g, p, c);
        s[0] += g * g;
        p -= c[0] * (g / (square_root(s[0]) + c[2]));
    }
};

// s = mix(s, g^2); d = g sqrt(e + eps) / sqrt(s + eps); e = mix(e, d^2); p -= lr d; mix(a, b) = rho a + (1 - rho) b.
// Settings: decay, rho, eps.
struct Adadelta : Stepping {
    static constexpr int states = 2;
    template <class A> static __device__ __forceinline__ void prepare(A* c, const double* o, Clock now) {
        c[0] = A(now.lr), c[1] = A(o[0]), c[2] = A(o[1]), c[3] = A(1 - o[1]), c[4] = A(o[2]);
    }
    template <class A> static __device__ __forceinline__ void step(A& p, A g, A* s, const A* c) {
        g = decayed(g, p, c);
        s[0] = c[2] * s[0] + c[3] * (g * g);
        A d = g / square_root(s[0] + c[4]) * square_root(s[1] + c[4]);
        s[1] = c[2] * s[1] + c[3] * (d * d);
        p -= c[0] * d;
    }
};

// s = mix(s, g^2), centered: a = mix(a, g); u = g / (sqrt(s - a^2) + eps); v = momentum v + u; p -= lr v. mix as
// above with alpha; states s, then a and v where there are such. Settings: decay, alpha, eps, momentum.
template <bool CENTERED, bool MOVING> struct RmsPropOf : Stepping {
    static constexpr int states = 1 + CENTERED + MOVING;
    template <class A> static __device__ __forceinline__ void prepare(A* c, const double* o, Clock now) {
        c[0] = A(now.lr), c[1] = A(o[0]), c[2] = A(o[1]), c[3] = A(1 - o[1]), c[4] = A(o[2]), c[5] = A(o[3]);
    }
    template <class A> static __device__ __forceinline__ void step(A& p, A g, A* s, const A* c) {
        g = decayed(g, p, c);
        A spread = s[0] = c[2] * s[0] + c[3] * (g * g);
        if (CENTERED) {
            A mean = s[1] = c[2] * s[1] + c[3] * g;
            spread -= mean * mean;
            spread = spread < 0 ? A(0) : spread; // which rounding can make negative
        }
        g = g / (square_root(spread) + c[4]);
        if (MOVING) g = s[states - 1] = c[5] * s[states - 1] + g;
        p -= c[0] * g;
    }
};
using RmsProp = RmsPropOf<false, false>;
using RmsPropMomentum = RmsPropOf<false, true>;
using RmsPropCentered = RmsPropOf<true, false>;
using RmsPropBoth = RmsPropOf<true, true>;

// m = mix(m, g), v = mix(v, g^2) with beta1 and beta2; p -= lr m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + eps), with both
// corrections in the coefficients. peak: the largest v so far takes its place. decoupled: p *= 1 - lr decay instead of
// decay in g. Settings: decay, beta1, beta2, eps, whether decoupled.
template <bool PEAK> struct AdamOf : Stepping {
    static constexpr int states = 2 + PEAK;
    template <class A> static __device__ __forceinline__ void prepare(A* c, const double* o, Clock now) {
        double root = sqrt(1 - pow(o[2], now.t));
        c[0] = A(now.lr * root / (1 - pow(o[1], now.t))), c[1] = A(o[4] != 0 ? 0 : o[0]);
        c[2] = A(o[1]), c[3] = A(1 - o[1]), c[4] = A(o[2]), c[5] = A(1 - o[2]), c[6] = A(o[3] * root);
        c[7] = A(o[4] != 0 ? 1 - now.lr * o[0] : 1);
    }
    template <class A> static __device__ __forceinline__ void step(A& p, A g, A* s, const A* c) {
        g = decayed(g, p, c);
        s[0] = c[2] * s[0] + c[3] * g;
        A v = s[1] = c[4] * s[1] + c[5] * (g * g);
        if (PEAK) v = s[states - 1] = v > s[states - 1] || v != v ? v : s[states - 1];
        p = p * c[7] - c[0] * (s[0] / (square_root(v) + c[6]));
    }
};
using Adam = AdamOf<false>;
using AmsGrad = AdamOf<true>;

// m as in Adam, n = max(beta2 n, |g| + eps); p -= lr / (1 - beta1^t) m / n. Settings: decay, beta1, beta2, eps.
struct Adamax : Stepping {
    static constexpr int states = 2;
    template <class A> static __device__ __forceinline__ void prepare(A* c, const double* o, Clock now) {
        c[0] = A(now.lr / (1 - pow(o[1], now.t))), c[1] = A(o[0]);
        c[2] = A(o[1]), c[3] = A(1 - o[1]), c[4] = A(o[2]), c[5] = A(o[3]);
    }
    template <class A> static __device__ __forceinline__ void step(A& p, A g, A* s, const A* c) {
        g = decayed(g, p, c);
        s[0] = c[2] * s[0] + c[3] * g;
        A old = c[4] * s[1], size = (g < 0 ? -g : g) + c[5];
        s[1] = old > size || old != old ? old : size;
        p -= c[0] * (s[0] / s[1]);
    }
};

// Adam with Nesterov momentum mu(t) = beta1 (1 - 0.96^(t momentum_decay) / 2) and P(t) = mu(1) ... mu(t) in place of powers of
// beta1: m / (1 - beta1^t) becomes mu(t + 1) m / (1 - P(t + 1)) + (1 - mu(t)) g / (1 - P(t)). Settings: decay, beta1, beta2,
// eps, momentum_decay.
struct Nadam : Stepping {
    static constexpr int states = 2;
    static __device__ __forceinline__ double momentum(const double* o, double t) { return o[1] * (1 - 0.5 * pow(0.96, t * o[4])); }
    template <class A> static __device__ __forceinline__ void prepare(A* c, const double* o, Clock now) {
        double mu = momentum(o, now.t), after = momentum(o, now.t + 1), product = now.product * mu;
        double root = sqrt(1 - pow(o[2], now.t));
        c[0] = A(now.lr * (1 - mu) / (1 - product) * root), c[1] = A(o[0]);
        c[2] = A(o[1]), c[3] = A(1 - o[1]), c[4] = A(o[2]), c[5] = A(1 - o[2]), c[6] = A(o[3] * root);
        c[7] = A(now.lr * after / (1 - product * after) * root);
    }
    template <class A> static __device__ __forceinline__ void step(A& p, A g, A* s, const A* c) {
        g = decayed(g, p, c);
        s[0] = c[2] * s[0] + c[3] * g;
        s[1] = c[4] * s[1] + c[5] * (g * g);
        p -= (c[0] * g + c[7] * s[0]) / (square_root(s[1]) + c[6]);
    }
};

// The state, an average, moves towards g: by 1 - decay, or where that is negative by 1 / t. Settings: decay.
struct Average : Stepping {
    static constexpr bool param = false;
    static constexpr int states = 1;
    template <class A> static __device__ __forceinline__ void prepare(A* c, const double* o, Clock now) {
        c[0] = A(o[0] < 0 ? 1 / now.t : 1 - o[0]);
    }
    template <class A> static __device__ __forceinline__ void step(A&, A g, A* s, const A* c) { s[0] += c[0] * (g - s[0]); }
};

// p clipped to [-limit, limit]. Settings: limit.
struct Clamp : Stepping {
    static constexpr bool grad = false;
    static constexpr int states = 0;
    template <class A> static __device__ __forceinline__ void prepare(A* c, const double* o, Clock) { c[0] = A(o[0]); }
    template <class A> static __device__ __forceinline__ void step(A& p, A, A*, const A* c) { p = p < -c[0] ? -c[0] : p > c[0] ? c[0] : p; }
};
