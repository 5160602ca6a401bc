// Many tensors in one launch: a table of their arrays, cut into chunks, one block a chunk.
//
// The table lies in the parameters of the launch, which hold 4 KB: nothing is copied beforehand, and a captured launch keeps it.
#pragma once
#include "common.cuh"

// Row r of tensor i is word[r * count + i]: the addresses of its K arrays, then in row K its number of elements, in row
// K + 1 its first chunk and, 32 bits up, its number among the tensors of the whole update.
struct Table {
    int count, chunk; // tensors here, elements of a chunk
    long long word[496];
};

// This block's chunk: elements begin to end of the tensor in column i.
struct Chunk { int i; long long begin, end; };

template <int K> __device__ __forceinline__ Chunk own_chunk(const Table& table) {
    int low = 0, high = table.count - 1;
    while (low < high) { // the last tensor whose first chunk is not beyond; those without elements have none
        int middle = (low + high + 1) / 2;
        if (int(table.word[(K + 1) * table.count + middle]) <= int(blockIdx.x)) low = middle;
        else high = middle - 1;
    }
    long long begin = (long long)(int(blockIdx.x) - int(table.word[(K + 1) * table.count + low])) * table.chunk;
    long long size = table.word[K * table.count + low], end = begin + table.chunk;
    return {low, begin, end < size ? end : size};
}

template <class T> __device__ __forceinline__ T* own_array(const Table& table, int row, int i) {
    return reinterpret_cast<T*>(table.word[row * table.count + i]);
}

template <int K> __device__ __forceinline__ int own_number(const Table& table, int i) {
    return int(table.word[(K + 1) * table.count + i] >> 32);
}

__device__ __forceinline__ Team own_block() { return {threadIdx.x, blockDim.x}; }

// x = f(x) on this block's elements of the tensors' only array.
template <class T, class F> __device__ __forceinline__ void change(const Table& table, F f) {
    Chunk at = own_chunk<1>(table);
    T* x = own_array<T>(table, 0, at.i) + at.begin;
    fill(own_block(), x, at.end - at.begin, [=](long long, Acc<T> v) { return f(v); }, (const T*)x);
}
