// Backward passes of activations: dx[i] = t[i] * f'(x)[i], from the forward's output. Launched by gpugrad/ops/activation.py.
//
// Shapes: all arrays have n elements, contiguous. Moves three elements an element (read t, read out, write dx).
// Grid-stride loop over 16-byte packets; nothing is shared between threads, so no other version was worth trying.
#include "common.cuh"
#include "functors.cuh"

template <class T> __global__ void relu_bwd(T* dx, const T* t, const T* out, long long n) {
    fill(whole_grid(), dx, n, [](long long, Acc<T> t, Acc<T> out) { return ReluBwd()(t, out); }, t, out);
}
