// Columns of images, for convolution by matrix products: im2col and its adjoint. Launched by conv2d, conv2d_input and
// conv2d_weight of gpugrad/ops/conv.py.
//
// x: planes (C of each image) of pixels; cols: for each tap of each channel a row with one element a window, which is the
// pixel under that tap there, or 0 outside. out = kernel (O, C taps) @ cols; kernel' @ t = cols of the gradient of x, which
// col2im adds up: dx[pixel] = sum over the windows and taps that lie on it of cols[tap][window], in row-major order.
// im2col reads x once (taps overlap in cache) and writes taps times as much; col2im the other way round.
//
// im2col: a thread makes all taps of one window in one channel, so that the index is taken apart once for all of them, and
// a warp writes neighbours. A thread an element takes it apart for each; a warp a row leaves most lanes idle on small
// images. 16-byte packets do not fit: rows start anywhere and strides leave gaps.
// col2im: a thread a pixel asks which windows cover it. Adding each column where it belongs would need atomics.
#include "conv.cuh"

// Windows first to first + count of every plane; cols of a tap lie row_step apart, those of an image image_step.
template <class T>
__global__ void im2col(T* cols, const T* x, Windows w, long long planes, int channels, long long first, long long count,
                       long long row_step, long long image_step) {
    Team team = whole_grid();
    for (long long i = team.rank; i < planes * count; i += team.size) {
        long long plane = i, at = split(plane, count), oy = first + at;
        int ox = split(oy, w.x.windows);
        const T* image = x + plane * w.plane();
        long long channel = split(plane, channels);
        T* col = cols + plane * image_step + channel * w.taps() * row_step + at;
        for (int a = 0; a < w.y.taps; a++) {
            int y = pixel(w.y, (int)oy, a);
            for (int b = 0; b < w.x.taps; b++, col += row_step) {
                int xx = pixel(w.x, ox, b);
                bool inside = within(w.y, y) && within(w.x, xx);
                *col = inside ? image[(long long)y * w.x.pixels + xx] : narrow<T>(0);
            }
        }
    }
}

// cols (groups, channels, taps, windows) to channels first to first + channels of the `all` in each group of x.
template <class T>
__global__ void col2im(T* x, const Acc<T>* cols, Windows w, long long groups, int channels, int first, int all) {
    Team team = whole_grid();
    for (long long i = team.rank; i < groups * channels * w.plane(); i += team.size) {
        long long plane = i, at = split(plane, w.plane()), y = at;
        int xx = split(y, w.x.pixels);
        const Acc<T>* col = cols + plane * w.taps() * w.count();
        int channel = split(plane, channels);
        Acc<T> sum = 0;
        over(w, (int)y, xx, [&](long long window, int tap) { sum += col[tap * w.count() + window]; });
        x[(plane * all + first + channel) * w.plane() + at] = narrow<T>(sum);
    }
}
