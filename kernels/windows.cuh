// How windows lie over images: the geometry that convolution and pooling share, on the GPU and, compiled, on the CPU.
#pragma once

// One axis: its pixels, the windows along it, and a window's taps, stride, padding and dilation. Both axes of a launch are
// packed by gpugrad/launch/conv.py. A plane is one channel of one image: y.pixels rows of x.pixels.
struct Axis { int pixels, windows, taps, stride, padding, dilation; };
struct Windows {
    Axis y, x;
    __device__ __forceinline__ long long plane() const { return (long long)y.pixels * x.pixels; }
    __device__ __forceinline__ long long count() const { return (long long)y.windows * x.windows; }
    __device__ __forceinline__ int taps() const { return y.taps * x.taps; }
};

// The pixel under a tap of a window; it may lie outside.
__device__ __forceinline__ int pixel(const Axis& a, int window, int tap) {
    return window * a.stride - a.padding + tap * a.dilation;
}
__device__ __forceinline__ bool within(const Axis& a, int pixel) { return pixel >= 0 && pixel < a.pixels; }

// f(pixel of the plane, tap) for the taps of a window that lie inside, in row-major order, until f says false.
template <class F> __device__ __forceinline__ void under(const Windows& w, int oy, int ox, F f) {
    for (int i = 0; i < w.y.taps; i++) {
        int y = pixel(w.y, oy, i);
        if (!within(w.y, y)) continue;
        for (int j = 0; j < w.x.taps; j++) {
            int x = pixel(w.x, ox, j);
            if (within(w.x, x) && !f((long long)y * w.x.pixels + x, i * w.x.taps + j)) return;
        }
    }
}

// f(window, tap) for the windows along an axis that have a tap on this pixel, in order.
template <class F> __device__ __forceinline__ void along(const Axis& a, int pixel, F f) {
    int at = pixel + a.padding, reach = a.dilation * (a.taps - 1);
    int first = at > reach ? (at - reach + a.stride - 1) / a.stride : 0, last = at / a.stride;
    for (int o = first; o <= last && o < a.windows; o++) {
        int offset = at - o * a.stride;
        if (offset % a.dilation == 0) f(o, offset / a.dilation);
    }
}

// f(window of the plane, tap) for the windows that have a tap on this pixel, in row-major order.
template <class F> __device__ __forceinline__ void over(const Windows& w, int y, int x, F f) {
    along(w.y, y, [&](int oy, int i) {
        along(w.x, x, [&](int ox, int j) { f((long long)oy * w.x.windows + ox, i * w.x.taps + j); });
    });
}
