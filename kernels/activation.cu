// Activations y = f(x) and their backward passes dx = t f'. Launched by gpugrad/ops/activation.py (tanh: elementwise.py).
//
// Shapes: all arrays have n elements, contiguous; v is y or x, whichever f' is computed from, and a, b, c are f's options:
// see functors.cuh. Moves two elements an element forward (read x, write y), three backward (read t and v, write dx).
// Grid-stride loop over 16-byte packets; nothing is shared between threads, so no other version was worth trying.
// F: Relu, LeakyRelu, Elu, Gelu, GeluTanh, Silu, Sigmoid, Tanh, Softplus, Mish, Hardswish
#include "common.cuh"
#include "functors.cuh"

template <class T, class F> __global__ void activation(T* y, const T* x, long long n, Acc<T> a, Acc<T> b, Acc<T> c) {
    Options<Acc<T>> options{a, b, c};
    fill(whole_grid(), y, n, [=](long long, Acc<T> x) { return F::value(x, options); }, x);
}

template <class T, class F>
__global__ void activation_bwd(T* dx, const T* t, const T* v, long long n, Acc<T> a, Acc<T> b, Acc<T> c) {
    Options<Acc<T>> options{a, b, c};
    fill(whole_grid(), dx, n, [=](long long, Acc<T> t, Acc<T> v) { return F::back(t, v, options); }, t, v);
}

// Relu's backward without options, the same function as activation_bwd<T, Relu>.
template <class T> __global__ void relu_bwd(T* dx, const T* t, const T* out, long long n) {
    fill(whole_grid(), dx, n, [](long long, Acc<T> t, Acc<T> out) { return Relu::back(t, out, {}); }, t, out);
}

// g, but 0 where it is NaN although t is 0 or, if `infinite`, inf: what 0 * inf and 0 * NaN count as in a gradient.
template <class T> __global__ void absorbed(T* y, const T* g, const T* t, long long n, int infinite) {
    fill(whole_grid(), y, n, [=](long long, Acc<T> g, Acc<T> t) {
        bool zero = t == 0, far = infinite && t == t && t - t != 0;
        return g != g && (zero || far) ? Acc<T>(0) : g;
    }, g, t);
}
