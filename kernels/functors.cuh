// The math of elementwise kernels, one struct a function: hand-written and generated kernels share them.
//
// Plain C++ on Acc values (float or double), no CUDA builtin but __umul64hi, so that a host compiler reads it as well.
// A functor is called with the operands in the op's order; the NumPy twin is the op's forward in gpugrad/ops.
#pragma once

__device__ __forceinline__ float exponential(float x) { return expf(x); }
__device__ __forceinline__ double exponential(double x) { return exp(x); }
__device__ __forceinline__ float logarithm(float x) { return logf(x); }
__device__ __forceinline__ double logarithm(double x) { return log(x); }

// t where out is positive or NaN, else 0.
struct ReluBwd {
    template <class A> __device__ __forceinline__ A operator()(A t, A out) const { return out <= A(0) ? A(0) : t; }
};

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
