// The math of elementwise kernels, one struct a function: hand-written and generated kernels share them.
//
// Plain C++ on Acc values (float or double), no CUDA builtin but __umul64hi, so that a host compiler reads it as well.
// A functor is called with the operands in the op's order; the NumPy twin is the op's forward in gpugrad/ops.
#pragma once

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

// --- activations: value(x) and back(t, v), t times the derivative ---------------------------------------------------
//
// v is the output for Relu, Sigmoid and Tanh, the input for the others. Where the slope is 0, back is 0 whatever t is.
// Nothing overflows on the way to a finite result, and small results keep their digits: 1 + tanh and 1 + erf do not.

// What an activation's formula calls a, b and c; zero where it does not.
template <class A> struct Options { A a, b, c; };

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

// c x above 0, c a (exp(b x) - 1) elsewhere.
struct Elu {
    template <class A> static __device__ __forceinline__ A value(A x, Options<A> o) {
        return o.c * (x > 0 ? x : o.a * exp_minus_one(o.b * x));
    }
    template <class A> static __device__ __forceinline__ A back(A t, A x, Options<A> o) {
        return t * (x > 0 ? o.c : o.c * o.a * o.b * exponential(o.b * x));
    }
};

// x Phi(x), Phi the normal distribution function.
struct Gelu {
    template <class A> static __device__ __forceinline__ A phi(A x) {
        return A(0.5) * erf_complement(x * A(-0.70710678118654752440));
    }
    template <class A> static __device__ __forceinline__ A value(A x, Options<A>) { return x * phi(x); }
    template <class A> static __device__ __forceinline__ A back(A t, A x, Options<A>) {
        return t * (phi(x) + x * exponential(A(-0.5) * x * x) * A(0.39894228040143267794)); // 1 / sqrt(2 pi)
    }
};

// x (1 + tanh(u)) / 2 = x logistic(2 u), u = sqrt(2 / pi) (x + 0.044715 x^3).
struct GeluTanh {
    template <class A> static __device__ __forceinline__ A twice_u(A x) {
        return x * (A(1.59576912160573071176) + A(0.0713548162726002527220) * (x * x));
    }
    template <class A> static __device__ __forceinline__ A value(A x, Options<A>) { return x * logistic(twice_u(x)); }
    template <class A> static __device__ __forceinline__ A back(A t, A x, Options<A>) {
        A z = twice_u(x), dz = A(1.59576912160573071176) + A(0.214064448817800758166) * (x * x);
        return t * (logistic(z) + x * logistic_slope(z) * dz);
    }
};

// x logistic(x).
struct Silu {
    template <class A> static __device__ __forceinline__ A value(A x, Options<A>) { return x * logistic(x); }
    template <class A> static __device__ __forceinline__ A back(A t, A x, Options<A>) {
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
    template <class A> static __device__ __forceinline__ A back(A t, A out, Options<A>) { return t * (1 - out * out); }
};

// log(1 + exp(a x)) / a; log_sigmoid is that with a = -1.
struct Softplus {
    template <class A> static __device__ __forceinline__ A value(A x, Options<A> o) {
        A z = o.a * x;
        return ((z > 0 ? z : A(0)) + log_one_plus(exponential(z < 0 ? z : -z))) / o.a;
    }
    template <class A> static __device__ __forceinline__ A back(A t, A x, Options<A> o) { return t * logistic(o.a * x); }
};

// x tanh(log(1 + e)) = x n / (n + 2), e = exp(x), n = e (e + 2). Above 20 the fraction is 1.
struct Mish {
    template <class A> static __device__ __forceinline__ A value(A x, Options<A>) {
        A e = exponential(x > 20 ? A(20) : x), n = e * (e + 2);
        return x * (n / (n + 2));
    }
    template <class A> static __device__ __forceinline__ A back(A t, A x, Options<A>) {
        if (x > 20) return t;
        A e = exponential(x), n = e * (e + 2), d = n + 2;
        return t * (n / d + x * (4 * e * (e + 1)) / (d * d));
    }
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
