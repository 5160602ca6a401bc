// Elementary functions for the CPU, written so that a compiler turns loops over them into vector code: no call, no branch
// (one choice after the other, none inside another), the same bits whether an element is computed alone or among others.
// NaN, infinities, subnormal numbers and overflow come out as in NumPy. They stand in for what functors.cuh takes from
// CUDA. The polynomials are least-squares fits at Chebyshev nodes; tests/test_chain.py bounds the errors in units of the
// last place.
#pragma once
#if __has_include(<features.h>)
#include <features.h>
#endif

#define __device__
#define __forceinline__ inline __attribute__((always_inline))
#define GG_HOST
#define GG_INFINITY __builtin_inff()
#define GG_NAN __builtin_nanf("")

static __forceinline__ unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return (unsigned long long)((unsigned __int128)a * b >> 64);
}
// The C library's own; in loops, where it has them, its vector forms.
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__)
#define GG_VECTOR __attribute__((simd("notinbranch"), const))
#else
#define GG_VECTOR __attribute__((const))
#endif
extern "C" {
GG_VECTOR float sinf(float), cosf(float), powf(float, float);
GG_VECTOR double sin(double), cos(double), pow(double, double);
__attribute__((const)) double sqrt(double), erfc(double);
}

template <class A> struct Float;
template <> struct Float<float> {
    using Bits = int;
    static constexpr int digits = 23, bias = 127;
    static constexpr float magic = 0x1.8p23f; // adding it rounds to a whole number, left in the low bits
    static constexpr float ln2_high = 0x1.63p-1f, ln2_low = -2.12194440e-4f;
    static constexpr float smallest = -104, largest = 89, least_minus_one = -18, tanh_one = 10, subnormal = 0x1p24f;
    static constexpr int subnormal_digits = 24;
    static constexpr Bits sqrt_half = 0x3f3504f3, tiny = 0x00800000;
    static constexpr float exp[] = {0.500000008129348849f, 0.16666515384494787f, 0.0416662615175309514f,
                                    0.00836922350798888426f, 0.00139465619476897367f};
    static constexpr float log[] = {0.666666656208976472f, 0.400003395086744471f, 0.285370775135188299f,
                                    0.235860189416567833f};
};
template <> struct Float<double> {
    using Bits = long long;
    static constexpr int digits = 52, bias = 1023;
    static constexpr double magic = 0x1.8p52;
    static constexpr double ln2_high = 0x1.62e42feep-1, ln2_low = 0x1.a39ef35793c76p-33;
    static constexpr double smallest = -746, largest = 710, least_minus_one = -38, tanh_one = 20, subnormal = 0x1p54;
    static constexpr int subnormal_digits = 54;
    static constexpr Bits sqrt_half = 0x3fe6a09e667f3bcd, tiny = 0x0010000000000000;
    static constexpr double exp[] = {0.5, 0.166666666666666847, 0.0416666666666667143, 0.00833333333331619216,
        0.00138888888888634621, 0.000198412698982328154, 0.0000248015873641784791, 2.75572331861382995e-6,
        2.75572412287301719e-7, 2.51125751992248245e-8, 2.09245960606479456e-9};
    static constexpr double log[] = {0.666666666666666608, 0.400000000000063706, 0.285714285690550403, 0.22222222650628932,
        0.181817754026410265, 0.153871008853704716, 0.132499127158234416, 0.132530363090622347};
};

template <class A> __forceinline__ typename Float<A>::Bits bits(A x) { return __builtin_bit_cast(typename Float<A>::Bits, x); }
template <class A> __forceinline__ A from_bits(typename Float<A>::Bits b) { return __builtin_bit_cast(A, b); }
template <class A> __forceinline__ A size(A x) { return x < 0 ? -x : x; }

// a b + c, rounded once where the processor does that at the price of a sum.
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
static __forceinline__ float fused(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
static __forceinline__ double fused(double a, double b, double c) { return __builtin_fma(a, b, c); }
#else
template <class A> __forceinline__ A fused(A a, A b, A c) { return a * b + c; }
#endif

// c[0] + c[1] x + ...
template <class A, int N> __forceinline__ A polynomial(const A (&c)[N], A x) {
    A sum = c[N - 1];
#pragma GCC unroll 16
    for (int i = N - 2; i >= 0; i--) sum = fused(sum, x, c[i]);
    return sum;
}

// x = n ln 2 + r with |r| at most half of ln 2; exp(r) - 1.
template <class A> struct Reduced {
    typename Float<A>::Bits n;
    A r, less_one;
    __forceinline__ explicit Reduced(A x) {
        using F = Float<A>;
        A rounded = fused(x, A(1.44269504088896340736), F::magic), whole = rounded - F::magic;
        n = bits(rounded) - bits(A(F::magic));
        r = fused(whole, -F::ln2_low, fused(whole, -F::ln2_high, x));
        less_one = fused(r * r, polynomial(F::exp, r), r);
    }
};
template <class A> __forceinline__ A power_of_two(typename Float<A>::Bits n) {
    return from_bits<A>((n + Float<A>::bias) << Float<A>::digits);
}

template <class A> __forceinline__ A exp_of(A x) {
    using F = Float<A>;
    x = x < F::smallest ? F::smallest : x;
    x = x > F::largest ? F::largest : x;
    Reduced<A> y(x);
    typename F::Bits half = y.n >> 1; // a power of two in two factors: the whole range of results, subnormal ones rounded once
    return (1 + y.less_one) * power_of_two<A>(half) * power_of_two<A>(y.n - half);
}
// The same where x is at most 0, or NaN: one of the factors is always the same.
template <class A> __forceinline__ A exp_below(A x) {
    constexpr typename Float<A>::Bits shift = Float<A>::bias / 2 + 16;
    Reduced<A> y(x < Float<A>::smallest ? Float<A>::smallest : x);
    return (1 + y.less_one) * power_of_two<A>(y.n + shift) * power_of_two<A>(-shift);
}

template <class A> __forceinline__ A expm1_of(A x) {
    using F = Float<A>;
    A clipped = x < F::least_minus_one ? F::least_minus_one : x > F::largest ? F::largest : x;
    Reduced<A> y(clipped);
    A scale = power_of_two<A>(y.n - 1); // half of it, which does not overflow before the result does
    A out = (scale * y.less_one + (scale - A(0.5))) * 2;
    return x == 0 ? x : out;
}

template <class A> __forceinline__ A tanh_of(A x) {
    A a = size(x), e = expm1_of(2 * (a > Float<A>::tanh_one ? Float<A>::tanh_one : a)), y = e / (e + 2);
    return x < 0 ? -y : x == 0 ? x : y;
}

// log(1 + f) = f - f^2 / 2 + s (f^2 / 2 + s^2 P(s^2)), s = f / (2 + f), where x = 2^k (1 + f).
template <class A> __forceinline__ A log_of(A x) {
    using F = Float<A>;
    using I = typename F::Bits;
    A scaled = bits(x) < F::tiny ? x * F::subnormal : x;
    I extra = bits(x) < F::tiny ? F::subnormal_digits : 0;
    I above = bits(scaled) - F::sqrt_half, mask = (I(1) << F::digits) - 1;
    I k = (above >> F::digits) - extra;
    A f = from_bits<A>((above & mask) + F::sqrt_half) - 1, s = f / (2 + f), z = s * s, half = A(0.5) * f * f;
    // k as a number, without a conversion that older processors have no vector form of
    A n = from_bits<A>(bits(A(F::magic)) + k) - F::magic;
    A out = n * F::ln2_high - ((half - (s * (half + z * polynomial(F::log, z)) + n * F::ln2_low)) - f);
    out = x < A(GG_INFINITY) ? out : x;
    out = x < 0 ? A(GG_NAN) : out;
    return x == 0 ? -A(GG_INFINITY) : out;
}

template <class A> __forceinline__ A log1p_of(A x) {
    A u = 1 + x, lost = size(x) < 1 ? x - (u - 1) : 1 - (u - x), out = log_of(u) + lost / u;
    out = u == 0 ? -A(GG_INFINITY) : out;
    out = x == A(GG_INFINITY) ? x : out;
    return x == 0 ? x : out;
}

// erfc(a) = exp(-a^2) P(q) / (1 + 2 a) for a >= 0, q = (a - 2) / (a + 2); erfc(-a) = 2 - erfc(a). What rounding takes
// from a^2 is put back as a factor, found by splitting a in halves whose products are exact.
static __forceinline__ float erfc_of(float x) {
    static constexpr float c[] = {1.276978382f, -0.09276381637f, -0.166030501f, 0.164050915f, -0.05421820721f,
        -0.008029962981f, 0.008711606047f, 0.001250720949f, -0.001427650176f, -0.0004010186751f, 0.0001759462676f,
        8.273986763e-5f};
    float a = size(x);
    a = a > 11 ? 11.0f : a;
    float high = from_bits<float>(bits(a) & ~0xfff), low = a - high, square = a * a;
    float rest = ((high * high - square) + 2 * high * low) + low * low;
    float e = exp_of(-square), y = (e - e * rest) * (polynomial(c, (a - 2) / (a + 2)) / (1 + 2 * a));
    return x < 0 ? 2 - y : y;
}

static __forceinline__ float exponential(float x) { return exp_of(x); }
static __forceinline__ double exponential(double x) { return exp_of(x); }
static __forceinline__ float logarithm(float x) { return log_of(x); }
static __forceinline__ double logarithm(double x) { return log_of(x); }
static __forceinline__ float exp_minus_one(float x) { return expm1_of(x); }
static __forceinline__ double exp_minus_one(double x) { return expm1_of(x); }
static __forceinline__ float log_one_plus(float x) { return log1p_of(x); }
static __forceinline__ double log_one_plus(double x) { return log1p_of(x); }
static __forceinline__ float hyperbolic_tangent(float x) { return tanh_of(x); }
static __forceinline__ double hyperbolic_tangent(double x) { return tanh_of(x); }
static __forceinline__ float erf_complement(float x) { return erfc_of(x); }
static __forceinline__ double erf_complement(double x) { return erfc(x); }
static __forceinline__ float square_root(float x) { return __builtin_sqrtf(x); }
static __forceinline__ double square_root(double x) { return __builtin_sqrt(x); }
static __forceinline__ float sine(float x) { return sinf(x); }
static __forceinline__ double sine(double x) { return sin(x); }
static __forceinline__ float cosine(float x) { return cosf(x); }
static __forceinline__ double cosine(double x) { return cos(x); }
static __forceinline__ float power(float x, float y) { return powf(x, y); }
static __forceinline__ double power(double x, double y) { return pow(x, y); }
