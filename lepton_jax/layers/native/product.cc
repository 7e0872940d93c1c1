// oneDNN's matrix product of rows[lanes..., rows..., k] with a kernel[lanes..., k, n], and both
// gradients.

#include "common.h"

namespace lepton {
namespace {

using ffi::AnyBuffer;
using dnnl::matmul;

memory::desc Matrix(int64_t rows, int64_t columns, int64_t stride, bool transposed,
                    memory::data_type type) {
  return {{rows, columns}, type, transposed ? memory::dims{1, stride} : memory::dims{stride, 1}};
}

// Where part `i` of `count` parts of `size` begins, on a border of `unit`.
int64_t Begin(int64_t i, int64_t count, int64_t size, int64_t unit) {
  return std::min(size, (size + unit - 1) / unit * i / count * unit);
}

void Multiply(ffi::ThreadPool& pool, memory::data_type type, int64_t lanes, int64_t m, int64_t n,
              int64_t k, bool transpose_a, bool transpose_b, char* a, char* b, char* c) {
  const size_t item = memory::data_type_size(type);
  // The result is cut along its longer side, and never so thin that the other side is read too
  // often. Nothing is added up across parts.
  const bool rows = m >= n;
  const int64_t unit = 64, size = rows ? m : n;
  const double most = std::min<double>(2.0 * m * n * k / kPartFlops, kMostParts);
  const int64_t parts = std::max<int64_t>(1, std::min<double>(most, (size + unit - 1) / unit));
  const int64_t lda = transpose_a ? m : k, ldb = transpose_b ? k : n;
  InParallel(pool, lanes * parts, [&](int64_t i) {
    const int64_t lane = i / parts, part = i % parts;
    const int64_t begin = Begin(part, parts, size, unit),
                  length = Begin(part + 1, parts, size, unit) - begin;
    const int64_t mine_m = rows ? length : m, mine_n = rows ? n : length;
    const auto left = Matrix(mine_m, k, lda, transpose_a, type),
               right = Matrix(k, mine_n, ldb, transpose_b, type);
    const auto result = Matrix(mine_m, mine_n, n, false, type);
    static Primitives primitives;
    const Dims key{
        static_cast<int64_t>(type), mine_m, mine_n, k, lda, ldb, n, transpose_a, transpose_b};
    const auto compiled = primitives.Get(key, [&] {
      matmul::primitive_desc description(Engine(), left, right, result, OwnScratchpad());
      return std::make_shared<Compiled>(matmul(description), description, result);
    });
    char* x = a + (lane * m * k + (rows ? begin * (transpose_a ? 1 : k) : 0)) * item;
    char* y = b + (lane * k * n + (rows ? 0 : begin * (transpose_b ? k : 1))) * item;
    char* z = c + (lane * m * n + (rows ? begin * n : begin)) * item;
    compiled->Run({{DNNL_ARG_SRC, memory(left, Engine(), x)},
                   {DNNL_ARG_WEIGHTS, memory(right, Engine(), y)},
                   {DNNL_ARG_DST, memory(result, Engine(), z)}});
  });
}

// How many rows of `width` numbers an array has in each lane.
int64_t Rows(const Dims& shape, int64_t lanes, int64_t width) {
  return Size(shape) / lanes / width;
}

ffi::Error ThroughKernel(const char* name, bool transposed, ffi::ThreadPool& pool, AnyBuffer& a,
                         AnyBuffer& kernel, AnyBuffer& c) {
  const auto left = Shape(a), right = Shape(kernel), result = Shape(c);
  return Guarded(name, {left, right, result}, [&] {
    const int64_t lanes = Lanes(right, 2), n = result.back(), k = left.back();
    Multiply(pool, Type(a), lanes, Rows(left, lanes, k), n, k, false, transposed, Data(a),
             Data(kernel), Data(c));
  });
}

ffi::Error Product(ffi::ThreadPool pool, AnyBuffer x, AnyBuffer kernel, ffi::Result<AnyBuffer> y) {
  return ThroughKernel("product: rows, kernel, result", false, pool, x, kernel, *y);
}

ffi::Error ProductTransposed(ffi::ThreadPool pool, AnyBuffer dy, AnyBuffer kernel,
                             ffi::Result<AnyBuffer> dx) {
  return ThroughKernel("product with a transposed kernel: rows, kernel, result", true, pool, dy,
                       kernel, *dx);
}

ffi::Error ProductSummed(ffi::ThreadPool pool, AnyBuffer x, AnyBuffer dy,
                         ffi::Result<AnyBuffer> dkernel) {
  const auto left = Shape(x), right = Shape(dy), result = Shape(*dkernel);
  return Guarded("sum of products of rows: left, right, result", {left, right, result}, [&] {
    const int64_t lanes = Lanes(result, 2), m = left.back(), n = right.back();
    Multiply(pool, Type(x), lanes, m, n, Rows(left, lanes, m), true, false, Data(x), Data(dy),
             Data(*dkernel));
  });
}

}  // namespace

#define TWO_TO_ONE \
  ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<AnyBuffer>().Arg<AnyBuffer>().Ret<AnyBuffer>()

XLA_FFI_DEFINE_HANDLER_SYMBOL(product, Product, TWO_TO_ONE);
XLA_FFI_DEFINE_HANDLER_SYMBOL(product_transposed, ProductTransposed, TWO_TO_ONE);
XLA_FFI_DEFINE_HANDLER_SYMBOL(product_summed, ProductSummed, TWO_TO_ONE);

// Whether this processor has instructions for bfloat16; oneDNN would imitate them otherwise.
extern "C" int has_bfloat16() {
  return dnnl::get_effective_cpu_isa() >= dnnl::cpu_isa::avx512_core_bf16;
}

// oneDNN's own version: major, minor, patch.
extern "C" void onednn_version(int* numbers) {
  const dnnl_version_t* version = dnnl_version();
  numbers[0] = version->major;
  numbers[1] = version->minor;
  numbers[2] = version->patch;
}

}  // namespace lepton
