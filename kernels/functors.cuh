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
