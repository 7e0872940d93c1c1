// Sums and moments of the columns of x[lanes..., rows..., columns], in one pass over memory.

#include "common.h"

namespace lepton {
namespace {

using ffi::AnyBuffer;

constexpr int64_t kBlock = 8192;  // numbers that stay in a core's nearest cache

// Rows of one lane in parts, and a part in blocks. A row of few columns is too short for the
// processor, so some rows are added up side by side, as one of `wide` numbers.
struct Cut {
  Cut(int64_t rows, int64_t columns) : rows(rows), columns(columns) {
    together = std::max<int64_t>(1, 128 / columns);
    block = std::max<int64_t>(1, kBlock / (together * columns)) * together;
    parts = std::max<int64_t>(1, std::min(kMostParts, rows / (4 * block)));
  }
  int64_t begin(int64_t part) const { return rows * part / parts; }

  int64_t rows, columns, together, block, parts;
};

// Calls add(i, j) for the numbers i of rows `begin` to `end` and the sum j that each belongs to;
// folds the sums.
template <int count, typename Add>
void Accumulate(const Cut& cut, int64_t begin, int64_t end, float* sums, const Add& add) {
  const int64_t wide = cut.together * cut.columns;
  std::fill(sums, sums + count * wide, 0.0f);
  int64_t row = begin;
  for (; row + cut.together <= end; row += cut.together) {
    for (int64_t j = 0; j < wide; ++j) add(row * cut.columns + j, j);
  }
  for (int64_t j = 0; j < (end - row) * cut.columns; ++j) add(row * cut.columns + j, j);
  for (int64_t k = 0; k < count; ++k) {
    float* mine = sums + k * wide;
    for (int64_t i = 1; i < cut.together; ++i) {
      for (int64_t j = 0; j < cut.columns; ++j) mine[j] += mine[i * cut.columns + j];
    }
  }
}

float* Sums(const Cut& cut, int64_t count) {
  thread_local Scratch scratch;
  return reinterpret_cast<float*>(scratch.Get(count * cut.together * cut.columns * sizeof(float)));
}

// Mean and variance. The moments of a block are taken in two passes over the cache, so that a
// column far from zero keeps its variance, and joined to those of the blocks before by Chan et al.
// (1983).
void Moments(const Cut& cut, const float* x, int64_t part, double* mean, double* squares) {
  const int64_t columns = cut.columns, wide = cut.together * columns;
  float* sums = Sums(cut, 2);
  std::fill(mean, mean + columns, 0.0);
  std::fill(squares, squares + columns, 0.0);
  double seen = 0;
  for (int64_t row = cut.begin(part); row < cut.begin(part + 1); row += cut.block) {
    const int64_t end = std::min(row + cut.block, cut.begin(part + 1));
    const double count = end - row;
    float* centre = sums + wide;
    Accumulate<1>(cut, row, end, sums, [&](int64_t i, int64_t j) { sums[j] += x[i]; });
    for (int64_t j = 0; j < wide; ++j) centre[j] = sums[j % columns] / static_cast<float>(count);
    Accumulate<1>(cut, row, end, sums, [&](int64_t i, int64_t j) {
      const float distance = x[i] - centre[j];
      sums[j] += distance * distance;
    });
    for (int64_t j = 0; j < columns; ++j) {
      const double distance = centre[j] - mean[j], share = count / (seen + count);
      mean[j] += distance * share;
      squares[j] += sums[j] + distance * distance * seen * share;
    }
    seen += count;
  }
}

void AllMoments(ffi::ThreadPool& pool, int64_t lanes, const Cut& cut, const float* x, float* mean,
                float* variance) {
  const int64_t columns = cut.columns;
  thread_local Scratch scratch;
  double* found =
      reinterpret_cast<double*>(scratch.Get(lanes * cut.parts * 2 * columns * sizeof(double)));
  InParallel(pool, lanes * cut.parts, [&](int64_t i) {
    double* mine = found + i * 2 * columns;
    Moments(cut, x + i / cut.parts * cut.rows * columns, i % cut.parts, mine, mine + columns);
  });
  for (int64_t lane = 0; lane < lanes; ++lane) {
    const double* parts = found + lane * cut.parts * 2 * columns;
    for (int64_t j = 0; j < columns; ++j) {
      double seen = 0, centre = 0, squares = 0;
      for (int64_t part = 0; part < cut.parts; ++part) {
        const double* mine = parts + part * 2 * columns;
        const double count = cut.begin(part + 1) - cut.begin(part);
        const double distance = mine[j] - centre, share = count / (seen + count);
        centre += distance * share;
        squares += mine[columns + j] + distance * distance * seen * share;
        seen += count;
      }
      mean[lane * columns + j] = centre;
      variance[lane * columns + j] = squares / seen;
    }
  }
}

// Sums of a * b and of a.
void AllSums(ffi::ThreadPool& pool, int64_t lanes, const Cut& cut, const float* a, const float* b,
             float* products, float* plain) {
  const int64_t columns = cut.columns, wide = cut.together * columns;
  thread_local Scratch scratch;
  double* found =
      reinterpret_cast<double*>(scratch.Get(lanes * cut.parts * 2 * columns * sizeof(double)));
  InParallel(pool, lanes * cut.parts, [&](int64_t i) {
    float *first = Sums(cut, 2), *second = first + wide;
    double* mine = found + i * 2 * columns;
    std::fill(mine, mine + 2 * columns, 0.0);
    const int64_t part = i % cut.parts, offset = i / cut.parts * cut.rows * columns;
    const float *left = a + offset, *right = b + offset;
    for (int64_t row = cut.begin(part); row < cut.begin(part + 1); row += cut.block) {
      Accumulate<2>(cut, row, std::min(row + cut.block, cut.begin(part + 1)), first,
                    [&](int64_t k, int64_t j) {
                      first[j] += left[k] * right[k];
                      second[j] += left[k];
                    });
      for (int64_t j = 0; j < columns; ++j) {
        mine[j] += first[j];
        mine[columns + j] += second[j];
      }
    }
  });
  for (int64_t i = 0; i < lanes * columns; ++i) {
    const double* mine = found + i / columns * cut.parts * 2 * columns + i % columns;
    double sums[2] = {0, 0};
    for (int64_t part = 0; part < cut.parts; ++part, mine += 2 * columns) {
      sums[0] += mine[0];
      sums[1] += mine[columns];
    }
    products[i] = sums[0];
    plain[i] = sums[1];
  }
}

ffi::Error MomentsCall(ffi::ThreadPool pool, AnyBuffer x, ffi::Result<AnyBuffer> mean,
                       ffi::Result<AnyBuffer> variance) {
  return Guarded("moments of columns: array, mean", {Shape(x), Shape(*mean)}, [&] {
    const int64_t lanes = Lanes(Shape(*mean), 1), columns = Shape(*mean).back();
    const Cut cut(Size(Shape(x)) / lanes / columns, columns);
    AllMoments(pool, lanes, cut, Floats(x), Floats(*mean), Floats(*variance));
  });
}

ffi::Error SumsCall(ffi::ThreadPool pool, AnyBuffer a, AnyBuffer b, ffi::Result<AnyBuffer> products,
                    ffi::Result<AnyBuffer> plain) {
  return Guarded("sums of columns: arrays, result", {Shape(a), Shape(b), Shape(*plain)}, [&] {
    const int64_t lanes = Lanes(Shape(*plain), 1), columns = Shape(*plain).back();
    const Cut cut(Size(Shape(a)) / lanes / columns, columns);
    AllSums(pool, lanes, cut, Floats(a), Floats(b), Floats(*products), Floats(*plain));
  });
}

// The sum of squares of all numbers of all arrays; the parts are stretches of one array.
ffi::Error SquaresCall(ffi::ThreadPool pool, ffi::RemainingArgs arrays,
                       ffi::Result<AnyBuffer> total) {
  return Guarded("sum of squares: result", {Shape(*total)}, [&] {
    constexpr int64_t kStretch = 8 * kBlock;
    const int64_t lanes = Size(Shape(*total));
    struct Part {
      const float* begin;
      int64_t count, lane;
      double sum;
    };
    std::vector<Part> parts;
    for (int64_t lane = 0; lane < lanes; ++lane) {
      for (size_t i = 0; i < arrays.size(); ++i) {
        auto array = *arrays.get<AnyBuffer>(i);
        const int64_t size = Size(Shape(array)) / lanes;
        for (int64_t at = 0; at < size; at += kStretch) {
          parts.push_back(
              {Floats(array) + lane * size + at, std::min(kStretch, size - at), lane, 0.0});
        }
      }
    }
    const int64_t tasks = std::max<int64_t>(1, std::min<int64_t>(kMostParts, parts.size() / 2));
    InParallel(pool, tasks, [&](int64_t task) {
      for (size_t i = parts.size() * task / tasks; i < parts.size() * (task + 1) / tasks; ++i) {
        float sums[64] = {};
        const float* x = parts[i].begin;
        int64_t k = 0;
        for (; k + 64 <= parts[i].count; k += 64) {
          for (int64_t j = 0; j < 64; ++j) sums[j] += x[k + j] * x[k + j];
        }
        for (; k < parts[i].count; ++k) sums[k % 64] += x[k] * x[k];
        for (float sum : sums) parts[i].sum += sum;
      }
    });
    std::vector<double> sums(lanes, 0.0);
    for (const Part& part : parts) sums[part.lane] += part.sum;
    std::copy(sums.begin(), sums.end(), Floats(*total));
  });
}

}  // namespace

#define BIND ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<AnyBuffer>()

XLA_FFI_DEFINE_HANDLER_SYMBOL(moments, MomentsCall, BIND.Ret<AnyBuffer>().Ret<AnyBuffer>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(column_sums, SumsCall,
                              BIND.Arg<AnyBuffer>().Ret<AnyBuffer>().Ret<AnyBuffer>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    squares, SquaresCall, ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().RemainingArgs().Ret<AnyBuffer>());

}  // namespace lepton
