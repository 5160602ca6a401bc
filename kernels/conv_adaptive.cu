// Means over a grid of cells of images (N, C, H, W) to (N, C, oh, ow), and the adjoint. Launched by gpugrad/ops/conv.py.
//
// Along an axis of n pixels and m cells, cell i covers floor(i n / m) to ceil((i + 1) n / m): neighbours share a pixel
// where m does not divide n. Backward: dx[pixel] = sum over the cells on it of t[cell] / pixels of the cell, in row-major
// order. Reads x (or t) and writes y (or dx) once.
// One thread a result, as in conv_pool.cu. Two products with averaging matrices would write an image in between. A single
// cell for the whole image does not come here: it is a mean.
#include "conv.cuh"

// Pixels first to end of a cell.
struct Cell {
    int first, end;
    __device__ Cell(const Axis& a, int i)
        : first((int)((long long)i * a.pixels / a.windows)),
          end((int)(((i + 1LL) * a.pixels + a.windows - 1) / a.windows)) {}
    __device__ int size() const { return end - first; }
};

// Cells first to end that cover a pixel.
struct Covering {
    int first, end;
    __device__ Covering(const Axis& a, int pixel)
        : first((int)((long long)pixel * a.windows / a.pixels)),
          end((int)(((pixel + 1LL) * a.windows + a.pixels - 1) / a.pixels)) {}
};

template <class T> __global__ void adaptive_avg_pool2d(T* y, const T* x, Windows w, long long planes) {
    each_window(y, w, planes, [&](long long plane, int i, int j) {
        Cell rows(w.y, i), columns(w.x, j);
        const T* image = x + plane * w.plane();
        Acc<T> sum = 0;
        for (long long row = rows.first; row < rows.end; row++)
            for (int column = columns.first; column < columns.end; column++) sum += widen(image[row * w.x.pixels + column]);
        return narrow<T>(sum / ((long long)rows.size() * columns.size()));
    });
}

template <class T> __global__ void adaptive_avg_pool2d_bwd(T* dx, const T* t, Windows w, long long planes) {
    each_pixel(dx, w, planes, [&](long long plane, int row, int column) {
        Covering rows(w.y, row), columns(w.x, column);
        Acc<T> sum = 0;
        for (int i = rows.first; i < rows.end; i++) {
            const T* line = t + (plane * w.y.windows + i) * w.x.windows;
            int height = Cell(w.y, i).size();
            for (int j = columns.first; j < columns.end; j++)
                sum += widen(line[j]) / ((long long)height * Cell(w.x, j).size());
        }
        return narrow<T>(sum);
    });
}
