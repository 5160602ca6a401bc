// Pooling over windows of images (N, C, H, W): maxima and means, and their adjoints. Launched by gpugrad/ops/conv.py.
//
// y[window] = the largest pixel under it, or the sum divided by the number of taps (padding counts as zeros). Backward in
// gather form: a thread a pixel asks which windows cover it and adds what they send, in row-major order: no atomics.
// The gradient of a maximum goes to the first pixel of the window, in row-major order, that holds it; NaN is the largest.
//
// Forward reads x once (overlaps come from cache) and writes y. max_pool2d_bwd reads t, x, y and writes dx: where windows do
// not overlap 2 + 2 / taps elements a pixel. A pixel that holds its window's maximum looks at the earlier ones for a tie;
// saving the place instead would spare reading x, but costs the forward another array and the rule an output.
// One thread a result; packets do not fit, because windows start anywhere.
#include "conv.cuh"

// Whether a pixel's value is what makes its window's maximum y.
template <class A> __device__ __forceinline__ bool tops(A value, A y) { return value == y || value != value; }

// The pixel of the plane from which a window has its maximum y; -1 where the whole window lies outside.
template <class T> __device__ __forceinline__ long long winner(const T* image, const Windows& w, int oy, int ox, Acc<T> y) {
    long long found = -1;
    under(w, oy, ox, [&](long long p, int) {
        if (tops(widen(image[p]), y)) found = p;
        return found < 0;
    });
    return found;
}

template <class T> __global__ void max_pool2d(T* y, const T* x, Windows w, long long planes) {
    each_window(y, w, planes, [&](long long plane, int oy, int ox) {
        const T* image = x + plane * w.plane();
        Acc<T> most = -GG_INFINITY;
        under(w, oy, ox, [&](long long p, int) {
            Acc<T> value = widen(image[p]);
            if (value > most || value != value) most = value;
            return most == most;
        });
        return narrow<T>(most);
    });
}

template <class T> __global__ void max_pool2d_bwd(T* dx, const T* t, const T* x, const T* y, Windows w, long long planes) {
    each_pixel(dx, w, planes, [&](long long plane, int row, int column) {
        const T* image = x + plane * w.plane();
        long long here = (long long)row * w.x.pixels + column;
        Acc<T> value = widen(image[here]), sum = 0;
        over(w, row, column, [&](long long window, int) {
            long long at = plane * w.count() + window;
            Acc<T> most = widen(y[at]);
            int oy = (int)(window / w.x.windows), ox = (int)(window % w.x.windows);
            if (tops(value, most) && winner(image, w, oy, ox, most) == here) sum += widen(t[at]);
        });
        return narrow<T>(sum);
    });
}

// out[window] = u at the pixel from which the window has its maximum: the tangent of max_pool2d.
template <class T> __global__ void max_pool2d_pick(T* out, const T* u, const T* x, const T* y, Windows w, long long planes) {
    each_window(out, w, planes, [&](long long plane, int oy, int ox) {
        long long at = (plane * w.y.windows + oy) * w.x.windows + ox, start = plane * w.plane();
        long long found = winner(x + start, w, oy, ox, widen(y[at]));
        return found < 0 ? narrow<T>(0) : u[start + found];
    });
}

template <class T> __global__ void avg_pool2d(T* y, const T* x, Windows w, long long planes) {
    each_window(y, w, planes, [&](long long plane, int oy, int ox) {
        const T* image = x + plane * w.plane();
        Acc<T> sum = 0;
        under(w, oy, ox, [&](long long p, int) { sum += widen(image[p]); return true; });
        return narrow<T>(sum / w.taps());
    });
}

template <class T> __global__ void avg_pool2d_bwd(T* dx, const T* t, Windows w, long long planes) {
    each_pixel(dx, w, planes, [&](long long plane, int row, int column) {
        Acc<T> sum = 0;
        over(w, row, column, [&](long long window, int) { sum += widen(t[plane * w.count() + window]); });
        return narrow<T>(sum / w.taps());
    });
}
