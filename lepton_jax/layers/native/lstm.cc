// The recurrence of an LSTM over all steps, forwards and backwards.
//
// Rows of a batch do not depend on each other, so a part is some rows over all steps: threads meet
// once at the end.
// Arrays: gates [lanes..., time, batch, 4 features] in the order input, forget, cell, output;
// kernel [lanes..., features, 4 features]; states [lanes..., batch, features];
// valid [lanes..., time, batch], 1 or 0; grids [lanes..., 18]: scale, zero and highest level of the
// states where they are projected, of each gate, and of the cell's own state; a scale of 0 where
// something is not rounded.

#include <cmath>
#include <cstdint>
#include <cstring>

#include "common.h"

namespace lepton {
namespace {

using dnnl::matmul;
using ffi::AnyBuffer;
using Result = ffi::Result<AnyBuffer>;

constexpr int64_t kGrids = 18;  // numbers of a lane's grids
constexpr int64_t kRows = 16;  // of a part, the fewest that fill the processor's registers

// e ** x to a unit in the last place or two, in a form that compilers turn into vector
// instructions: 2 ** n times a polynomial on [-ln 2 / 2, ln 2 / 2] (Cephes, expf).
inline float Exp(float x) {
  x = x < -87.0f ? -87.0f : x > 88.0f ? 88.0f : x;
  // Rounded: 1.5 * 2 ** 23 has no fraction left.
  const float n = (x * 1.44269504f + 12582912.0f) - 12582912.0f;
  const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const int32_t bits = (static_cast<int32_t>(n) + 127) << 23;
  float power;
  std::memcpy(&power, &bits, sizeof(power));
  return p * power;
}

inline float Sigmoid(float x) { return 1.0f / (1.0f + Exp(-x)); }

// Near zero a polynomial, which keeps the relative error small (Cephes, tanhf).
inline float Tanh(float x) {
  const float size = std::fabs(x), z = x * x;
  float p = -5.70498872745e-3f;
  p = p * z + 2.06390887954e-2f;
  p = p * z - 5.37397155531e-2f;
  p = p * z + 1.33314422036e-1f;
  p = p * z - 3.33332819422e-1f;
  const float near = p * z * x + x, far = 1.0f - 2.0f / (Exp(2.0f * size) + 1.0f);
  return size < 0.625f ? near : x < 0.0f ? -far : far;
}

// Rows times a kernel whose order oneDNN chose; `accumulate` adds to what is there.
class Multiplier {
 public:
  Multiplier(int64_t rows, int64_t inputs, int64_t outputs, bool accumulate)
      : left_({rows, inputs}, memory::data_type::f32, memory::format_tag::ab),
        result_({rows, outputs}, memory::data_type::f32, memory::format_tag::ab) {
    static Primitives primitives;
    compiled_ = primitives.Get({rows, inputs, outputs, accumulate}, [&] {
      memory::desc any({inputs, outputs}, memory::data_type::f32, memory::format_tag::any);
      auto attributes = OwnScratchpad();
      if (accumulate) {
        dnnl::post_ops sum;
        sum.append_sum();
        attributes.set_post_ops(sum);
      }
      matmul::primitive_desc description(Engine(), left_, any, result_, attributes);
      return std::make_shared<Compiled>(matmul(description), description,
                                        description.weights_desc());
    });
  }

  const memory::desc& order() const { return compiled_->order; }

  void operator()(float* rows, void* kernel, float* result) const {
    compiled_->Run({{DNNL_ARG_SRC, memory(left_, Engine(), rows)},
                    {DNNL_ARG_WEIGHTS, memory(compiled_->order, Engine(), kernel)},
                    {DNNL_ARG_DST, memory(result_, Engine(), result)}});
  }

 private:
  memory::desc left_, result_;
  Kept compiled_;
};

struct Sizes {
  explicit Sizes(const Dims& gates)
      : lanes(Lanes(gates, 3)), time(gates.end()[-3]), batch(gates.end()[-2]),
        features(gates.end()[-1] / 4),
        parts(std::max<int64_t>(1, std::min(kMostParts, batch / kRows))) {}

  int64_t begin(int64_t part) const { return batch * part / parts; }
  int64_t wide() const { return 4 * features; }

  int64_t lanes, time, batch, features, parts;
};

// The kernel of each lane in oneDNN's order for so many rows; `transposed`: [4 features, features].
class Ordered {
 public:
  Ordered(const Sizes& s, float* kernel, bool transposed)
      : sizes_(s), kernel_(kernel), transposed_(transposed) {}

  // In memory of the thread that asks: a lane's kernel is small, and each part reads it at every
  // step.
  char* Get(int64_t lane, const Multiplier& multiply) const {
    thread_local Scratch scratch;
    char* ordered = scratch.Get(multiply.order().get_size());
    const int64_t f = sizes_.features, w = sizes_.wide();
    memory::desc plain({f, w}, memory::data_type::f32, memory::format_tag::ab);
    if (transposed_) plain = memory::desc({w, f}, memory::data_type::f32, memory::format_tag::ba);
    Reorder(plain, kernel_ + lane * f * w, multiply.order(), ordered);
    return ordered;
  }

 private:
  const Sizes& sizes_;
  float* kernel_;
  bool transposed_;
};

// What is read of a value: scale * (level - zero), levels from 0 to `highest`.
struct Grid {
  explicit Grid(const float* numbers)
      : scale(numbers[0]), zero(numbers[1]), highest(numbers[2]), on(scale > 0.0f) {}

  // The level of x before it is clipped; halves go to even numbers. What is far outside is cut
  // first, so that adding 1.5 * 2 ** 23, which leaves no fraction, stays exact.
  float Level(float x) const {
    const float place = x / scale, low = -zero - 1.0f, high = highest - zero + 1.0f;
    const float near = place < low ? low : place > high ? high : place;
    return (near + 12582912.0f) - 12582912.0f + zero;
  }

  void Read(int64_t count, const float* x, float* result) const {
    if (!on) {
      if (x != result) std::copy(x, x + count, result);
      return;
    }
    const Grid own = *this;  // whose numbers a result cannot overwrite, so that loops are vectors
    for (int64_t k = 0; k < count; ++k) {
      const float level = own.Level(x[k]);
      const float inside = level < 0.0f ? 0.0f : level > own.highest ? own.highest : level;
      result[k] = (inside - own.zero) * own.scale;
    }
  }

  // No gradient reaches what was clipped.
  void Cut(int64_t count, const float* x, float* gradient) const {
    if (!on) return;
    const Grid own = *this;
    for (int64_t k = 0; k < count; ++k) {
      const float level = own.Level(x[k]);
      gradient[k] = level < 0.0f || level > own.highest ? 0.0f : gradient[k];
    }
  }

  float scale, zero, highest;
  bool on;
};

struct Grids {
  explicit Grids(const float* numbers)
      : projected(numbers), gates{Grid(numbers + 3), Grid(numbers + 6), Grid(numbers + 9),
                                  Grid(numbers + 12)},
        cell(numbers + 15), any_gate(gates[0].on || gates[1].on || gates[2].on || gates[3].on) {}

  // What is read of gates z[4 features]: themselves, or `own`, which is filled.
  const float* Read(int64_t features, const float* z, float* own) const {
    if (!any_gate) return z;
    for (int64_t i = 0; i < 4; ++i) gates[i].Read(features, z + i * features, own + i * features);
    return own;
  }

  Grid projected, gates[4], cell;
  bool any_gate;
};

// One row of one step. `z` holds the joined gates and becomes the activated ones, `own` is scratch
// for as many, and `cell` becomes what is then read as the cell's state c.
void Step(int64_t features, const Grids& grids, float exists, float* __restrict z,
          float* __restrict own, float* __restrict h, float* __restrict c,
          float* __restrict output, float* __restrict cell) {
  for (int64_t k = 0; k < 2 * features; ++k) z[k] = Sigmoid(z[k]);
  for (int64_t k = 2 * features; k < 3 * features; ++k) z[k] = Tanh(z[k]);
  for (int64_t k = 3 * features; k < 4 * features; ++k) z[k] = Sigmoid(z[k]);
  if (exists == 0.0f) {
    std::fill(output, output + features, 0.0f);
    std::copy(c, c + features, cell);
    return;
  }
  const float *i = grids.Read(features, z, own), *f = i + features, *g = f + features,
              *o = g + features;
  for (int64_t k = 0; k < features; ++k) cell[k] = f[k] * c[k] + i[k] * g[k];
  grids.cell.Read(features, cell, c);
  for (int64_t k = 0; k < features; ++k) output[k] = h[k] = o[k] * Tanh(c[k]);
}

// `activated` and `cells`, which only a gradient needs, may be null.
struct Forward {
  float *gates, *kernel, *bias, *valid, *keep, *grids, *h, *c, *outputs, *activated, *cells,
      *last_h, *last_c;
};

void RunForward(const Sizes& s, ffi::ThreadPool& pool, const Forward& a) {
  const Ordered ordered(s, a.kernel, false);
  InParallel(pool, s.lanes * s.parts, [&](int64_t i) {
    const int64_t lane = i / s.parts, begin = s.begin(i % s.parts),
                  n = s.begin(i % s.parts + 1) - begin;
    const int64_t f = s.features, w = s.wide(), first = (lane * s.batch + begin) * f;
    const Multiplier multiply(n, f, w, true);
    const Grids grids(a.grids + lane * kGrids);
    char* kernel = ordered.Get(lane, multiply);
    thread_local Scratch scratch;
    float* kept = reinterpret_cast<float*>(scratch.Get((n * (w + 2 * f) + w) * sizeof(float)));
    float *own_z = kept + n * f, *own_cells = own_z + n * w, *own_gates = own_cells + n * f;
    float *h = a.last_h + first, *c = a.last_c + first;
    std::copy(a.h + first, a.h + first + n * f, h);
    std::copy(a.c + first, a.c + first + n * f, c);
    for (int64_t t = 0; t < s.time; ++t) {
      const int64_t row = (lane * s.time + t) * s.batch + begin;
      float* z = a.activated ? a.activated + row * w : own_z;
      float* cells = a.cells ? a.cells + row * f : own_cells;
      const float *gates = a.gates + row * w, *bias = a.bias + lane * w;
      for (int64_t r = 0; r < n; ++r) {
        for (int64_t k = 0; k < w; ++k) z[r * w + k] = gates[r * w + k] + bias[k];
      }
      for (int64_t k = 0; k < n * f; ++k) kept[k] = h[k] * a.keep[first + k];
      grids.projected.Read(n * f, kept, kept);
      multiply(kept, kernel, z);
      for (int64_t r = 0; r < n; ++r) {
        Step(f, grids, a.valid[row + r], z + r * w, own_gates, h + r * f, c + r * f,
             a.outputs + (row + r) * f, cells + r * f);
      }
    }
  });
}

// One row of one step backwards: dz from the gradients of the states after it; dc becomes that of
// the cell before. `u` is what was read of the gates z, `read` of the new cell's state, `before` of
// the old one's. Gradients of what was read go to `dinside`, gates first, where it was rounded.
void StepBack(int64_t features, const Grids& grids, const float* __restrict z,
              const float* __restrict u, const float* __restrict cell,
              const float* __restrict read, const float* __restrict before,
              const float* __restrict dh, float* __restrict dc, float* __restrict dz,
              float* __restrict dinside) {
  const float *i = u, *f = u + features, *g = u + 2 * features, *o = u + 3 * features;
  for (int64_t k = 0; k < features; ++k) {
    const float t = Tanh(read[k]);
    dz[3 * features + k] = dh[k] * t;
    dc[k] += dh[k] * o[k] * (1.0f - t * t);
  }
  if (grids.cell.on) std::copy(dc, dc + features, dinside + 4 * features);
  grids.cell.Cut(features, cell, dc);
  for (int64_t k = 0; k < features; ++k) {
    dz[k] = dc[k] * g[k];
    dz[features + k] = dc[k] * before[k];
    dz[2 * features + k] = dc[k] * i[k];
    dc[k] *= f[k];
  }
  if (grids.any_gate) std::copy(dz, dz + 4 * features, dinside);
  for (int64_t n = 0; n < 4; ++n) grids.gates[n].Cut(features, z + n * features, dz + n * features);
  for (int64_t k = 0; k < 2 * features; ++k) dz[k] *= z[k] * (1.0f - z[k]);
  for (int64_t k = 2 * features; k < 3 * features; ++k) dz[k] *= 1.0f - z[k] * z[k];
  for (int64_t k = 3 * features; k < 4 * features; ++k) dz[k] *= z[k] * (1.0f - z[k]);
}

// `dread` and `dinside`, the gradients of what was read, are filled where something is rounded.
struct Backward {
  float *activated, *cells, *outputs, *kernel, *valid, *keep, *grids, *h, *c, *doutputs, *dlast_h,
      *dlast_c, *dgates, *dread, *dinside, *dh, *dc;
};

void RunBackward(const Sizes& s, ffi::ThreadPool& pool, const Backward& a) {
  const Ordered ordered(s, a.kernel, true);
  InParallel(pool, s.lanes * s.parts, [&](int64_t i) {
    const int64_t lane = i / s.parts, begin = s.begin(i % s.parts),
                  n = s.begin(i % s.parts + 1) - begin;
    const int64_t f = s.features, w = s.wide(), first = (lane * s.batch + begin) * f;
    const Multiplier multiply(n, w, f, false);
    const Grids grids(a.grids + lane * kGrids);
    char* kernel = ordered.Get(lane, multiply);
    thread_local Scratch scratch;
    float* back = reinterpret_cast<float*>(scratch.Get((n * f + w + 2 * f) * sizeof(float)));
    float *own_gates = back + n * f, *own_cell = own_gates + w, *own_before = own_cell + f;
    float *dh = a.dh + first, *dc = a.dc + first;
    std::copy(a.dlast_h + first, a.dlast_h + first + n * f, dh);
    std::copy(a.dlast_c + first, a.dlast_c + first + n * f, dc);
    for (int64_t t = s.time - 1; t >= 0; --t) {
      const int64_t row = (lane * s.time + t) * s.batch + begin;
      for (int64_t r = 0; r < n; ++r) {
        float *mine = dh + r * f, *dz = a.dgates + (row + r) * w;
        float* dinside = a.dinside + (row + r) * (w + f);
        if (a.valid[row + r] == 0.0f) {
          std::fill(dz, dz + w, 0.0f);
          if (grids.any_gate || grids.cell.on) std::fill(dinside, dinside + w + f, 0.0f);
          continue;
        }
        const float *doutput = a.doutputs + (row + r) * f, *z = a.activated + (row + r) * w,
                    *cell = a.cells + (row + r) * f, *read = cell,
                    *before = t ? cell - s.batch * f : a.c + first + r * f;
        if (grids.cell.on) {
          grids.cell.Read(f, cell, own_cell);
          read = own_cell;
          if (t) {  // what a sequence begins with is not rounded
            grids.cell.Read(f, before, own_before);
            before = own_before;
          }
        }
        for (int64_t k = 0; k < f; ++k) mine[k] += doutput[k];
        StepBack(f, grids, z, grids.Read(f, z, own_gates), cell, read, before, mine, dc + r * f,
                 dz, dinside);
      }
      multiply(a.dgates + row * w, kernel, back);
      if (grids.projected.on) std::copy(back, back + n * f, a.dread + row * f);
      const float* states = t ? a.outputs + (row - s.batch) * f : a.h + first;
      for (int64_t r = 0; r < n; ++r) {
        if (a.valid[row + r] == 0.0f) continue;  // the state passed this step as it was
        const float* keep = a.keep + first + r * f;
        for (int64_t k = 0; k < f; ++k) dh[r * f + k] = back[r * f + k] * keep[k];
        if (!grids.projected.on) continue;
        for (int64_t k = 0; k < f; ++k) own_cell[k] = states[r * f + k] * keep[k];
        grids.projected.Cut(f, own_cell, dh + r * f);
      }
    }
  });
}

ffi::Error ForwardCall(ffi::ThreadPool pool, AnyBuffer gates, AnyBuffer kernel, AnyBuffer bias,
                       AnyBuffer valid, AnyBuffer keep, AnyBuffer grids, AnyBuffer h, AnyBuffer c,
                       Result outputs, Result activated, Result cells, Result last_h,
                       Result last_c) {
  return Guarded("LSTM: gates, kernel, state", {Shape(gates), Shape(kernel), Shape(h)}, [&] {
    RunForward(Sizes(Shape(gates)), pool,
               {Floats(gates), Floats(kernel), Floats(bias), Floats(valid), Floats(keep),
                Floats(grids), Floats(h), Floats(c), Floats(*outputs), Floats(*activated),
                Floats(*cells), Floats(*last_h), Floats(*last_c)});
  });
}

ffi::Error InferenceCall(ffi::ThreadPool pool, AnyBuffer gates, AnyBuffer kernel, AnyBuffer bias,
                         AnyBuffer valid, AnyBuffer keep, AnyBuffer grids, AnyBuffer h, AnyBuffer c,
                         Result outputs, Result last_h, Result last_c) {
  return Guarded("LSTM: gates, kernel, state", {Shape(gates), Shape(kernel), Shape(h)}, [&] {
    RunForward(Sizes(Shape(gates)), pool,
               {Floats(gates), Floats(kernel), Floats(bias), Floats(valid), Floats(keep),
                Floats(grids), Floats(h), Floats(c), Floats(*outputs), nullptr, nullptr,
                Floats(*last_h), Floats(*last_c)});
  });
}

ffi::Error BackwardCall(ffi::ThreadPool pool, AnyBuffer activated, AnyBuffer cells,
                        AnyBuffer outputs, AnyBuffer kernel, AnyBuffer valid, AnyBuffer keep,
                        AnyBuffer grids, AnyBuffer h, AnyBuffer c, AnyBuffer doutputs,
                        AnyBuffer dlast_h, AnyBuffer dlast_c, Result dgates, Result dread,
                        Result dinside, Result dh, Result dc) {
  return Guarded("LSTM backwards: gates, kernel, state",
                 {Shape(activated), Shape(kernel), Shape(c)}, [&] {
                   RunBackward(Sizes(Shape(activated)), pool,
                               {Floats(activated), Floats(cells), Floats(outputs), Floats(kernel),
                                Floats(valid), Floats(keep), Floats(grids), Floats(h), Floats(c),
                                Floats(doutputs), Floats(dlast_h), Floats(dlast_c),
                                Floats(*dgates), Floats(*dread), Floats(*dinside), Floats(*dh),
                                Floats(*dc)});
                 });
}

}  // namespace

#define A .Arg<AnyBuffer>()
#define R .Ret<AnyBuffer>()

XLA_FFI_DEFINE_HANDLER_SYMBOL(lstm, ForwardCall,
                              ffi::Ffi::Bind().Ctx<ffi::ThreadPool>() A A A A A A A A R R R R R);
XLA_FFI_DEFINE_HANDLER_SYMBOL(lstm_inference, InferenceCall,
                              ffi::Ffi::Bind().Ctx<ffi::ThreadPool>() A A A A A A A A R R R);
XLA_FFI_DEFINE_HANDLER_SYMBOL(
    lstm_back, BackwardCall,
    ffi::Ffi::Bind().Ctx<ffi::ThreadPool>() A A A A A A A A A A A A R R R R R);

}  // namespace lepton
