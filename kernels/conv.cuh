// Walks over windows and pixels: what convolution and pooling on the GPU share.
#pragma once
#include "common.cuh"
#include "windows.cuh"

// Split off the last axis of an index, of length n.
template <class I> __device__ __forceinline__ I split(long long& index, I n) {
    I last = (I)(index % n);
    index /= n;
    return last;
}

// f(plane, window row, window column) for every window, in y.
template <class T, class F> __device__ __forceinline__ void each_window(T* y, const Windows& w, long long planes, F f) {
    Team team = whole_grid();
    for (long long i = team.rank; i < planes * w.count(); i += team.size) {
        long long plane = i;
        int ox = split(plane, w.x.windows), oy = split(plane, w.y.windows);
        y[i] = f(plane, oy, ox);
    }
}

// f(plane, row, column) for every pixel, in x.
template <class T, class F> __device__ __forceinline__ void each_pixel(T* x, const Windows& w, long long planes, F f) {
    Team team = whole_grid();
    for (long long i = team.rank; i < planes * w.plane(); i += team.size) {
        long long plane = i;
        int column = split(plane, w.x.pixels), row = split(plane, w.y.pixels);
        x[i] = f(plane, row, column);
    }
}
