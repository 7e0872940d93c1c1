// oneDNN's convolution and its two gradients.
//
// Images are [lanes..., batch, height, width, channels], biases [lanes..., features],
// kernels [lanes..., height, width, channels / groups, features].

#include "common.h"

namespace lepton {
namespace {

using Numbers = ffi::Span<const int64_t>;
using ffi::AnyBuffer;
using tag = memory::format_tag;
using type = memory::data_type;

enum Kind { kForward, kImageGradient, kKernelGradient };

// One call. Its parts differ from it in the size of the batch alone.
struct Problem {
  Problem(Kind kind, type dtype, bool bias, const Dims& image, const Dims& kernel, const Dims& out,
          Numbers strides, Numbers pads, int64_t groups)
      : kind(kind), dtype(dtype), bias(bias), lanes(Lanes(image, 4)), groups(groups),
        image(image.end() - 4, image.end()), kernel(kernel.end() - 4, kernel.end()),
        out(out.end() - 4, out.end()), strides(strides.begin(), strides.end()),
        before{pads[0], pads[2]}, after{pads[1], pads[3]} {
    if (groups < 1 || this->image[3] != groups * this->kernel[2] || features() % groups ||
        this->out[3] != features() || this->out[0] != batch()) {
      throw std::runtime_error("these shapes and groups do not fit each other");
    }
  }

  int64_t batch() const { return image[0]; }
  int64_t features() const { return kernel[3]; }
  int64_t image_size() const { return image[1] * image[2] * image[3]; }
  int64_t out_size() const { return out[1] * out[2] * out[3]; }
  int64_t kernel_size() const { return kernel[0] * kernel[1] * kernel[2] * kernel[3]; }
  size_t item() const { return memory::data_type_size(dtype); }

  // Into how many parts the batch is cut. A kernel's gradient is then a sum of that of each part;
  // these sums have to be written and read, so there are only as many as stay small beside the
  // images.
  int64_t parts() const {
    double found = 2.0 * batch() * out[1] * out[2] * kernel_size() / kPartFlops;
    if (kind == kKernelGradient) {
      double images = static_cast<double>(batch()) * (image_size() + out_size());
      found = std::min(found, std::max(2.0, images / (8.0 * kernel_size())));
    }
    return std::max<int64_t>(1, std::min<double>(found, std::min(batch(), kMostParts)));
  }

  Dims key(int64_t images) const {
    Dims key{kind, static_cast<int64_t>(dtype), bias, images, groups};
    for (const Dims* dims : {&image, &kernel, &out})
      key.insert(key.end(), dims->begin() + (dims != &kernel), dims->end());
    for (const Dims* dims : {&strides, &before, &after})
      key.insert(key.end(), dims->begin(), dims->end());
    return key;
  }

  memory::desc kernel_desc(type dtype, bool any) const {
    if (groups == 1) {
      return {{kernel[3], kernel[2], kernel[0], kernel[1]}, dtype, any ? tag::any : tag::hwio};
    }
    memory::dims dims{groups, kernel[3] / groups, kernel[2], kernel[0], kernel[1]};
    return {dims, dtype, any ? tag::any : tag::hwigo};
  }

  memory::desc bias_desc(type dtype) const { return {{features()}, dtype, tag::x}; }
  memory::desc image_desc(int64_t n) const {
    return {{n, image[3], image[1], image[2]}, dtype, tag::nhwc};
  }
  memory::desc out_desc(int64_t n) const { return {{n, out[3], out[1], out[2]}, dtype, tag::nhwc}; }

  Kind kind;
  type dtype;
  bool bias;
  int64_t lanes, groups;
  Dims image, kernel, out, strides, before, after;
};

Kept Compile(const Problem& p, int64_t n) {
  using forward = dnnl::convolution_forward;
  using backward_data = dnnl::convolution_backward_data;
  using backward_weights = dnnl::convolution_backward_weights;
  const auto direct = dnnl::algorithm::convolution_direct;
  const auto image = p.image_desc(n), out = p.out_desc(n), kernel = p.kernel_desc(p.dtype, true);
  const auto attributes = OwnScratchpad();
  const auto bias = p.bias ? p.bias_desc(p.dtype) : memory::desc();
  forward::primitive_desc there(Engine(), dnnl::prop_kind::forward_training, direct, image, kernel,
                                bias, out, p.strides, p.before, p.after, attributes);
  if (p.kind == kForward)
    return std::make_shared<Compiled>(forward(there), there, there.weights_desc());
  if (p.kind == kImageGradient) {
    backward_data::primitive_desc back(Engine(), direct, image, kernel, out, p.strides, p.before,
                                       p.after, there, attributes);
    return std::make_shared<Compiled>(backward_data(back), back, back.weights_desc());
  }
  // Summed in float32, whatever the type of the images.
  const auto sums = p.kernel_desc(type::f32, true);
  const auto bias_sums = p.bias ? p.bias_desc(type::f32) : memory::desc();
  backward_weights::primitive_desc back(Engine(), direct, image, sums, bias_sums, out, p.strides,
                                        p.before, p.after, there, attributes);
  return std::make_shared<Compiled>(backward_weights(back), back, back.diff_weights_desc());
}

// The batch in parts: `rest` of them with an image more than the others.
struct Cut {
  explicit Cut(const Problem& p)
      : parts(p.parts()), size(p.batch() / parts), rest(p.batch() % parts), small(Get(p, size)),
        large(rest ? Get(p, size + 1) : small) {}

  static Kept Get(const Problem& p, int64_t n) {
    static Primitives primitives;
    return primitives.Get(p.key(n), [&] { return Compile(p, n); });
  }

  bool is_large(int64_t part) const { return part < rest; }
  int64_t images(int64_t part) const { return size + is_large(part); }
  int64_t begin(int64_t part) const { return part * size + std::min(part, rest); }
  const Compiled& at(int64_t part) const { return is_large(part) ? *large : *small; }
  // oneDNN's own order of a kernel may differ with the size of a part.
  bool two_orders() const { return rest && large->order != small->order; }

  int64_t parts, size, rest;
  Kept small, large;
};

// Of image, kernel, bias and out those that a kind does not write are read.
void ThroughKernel(const Problem& p, ffi::ThreadPool& pool, char* image, char* kernel, char* bias,
                   char* out) {
  const Cut cut(p);
  const size_t first = Aligned(cut.small->order.get_size());
  const size_t lane_bytes = first + (cut.two_orders() ? Aligned(cut.large->order.get_size()) : 0);
  thread_local Scratch scratch;
  char* ordered = scratch.Get(p.lanes * lane_bytes);
  for (int64_t lane = 0; lane < p.lanes; ++lane) {
    char *from = kernel + lane * p.kernel_size() * p.item(), *to = ordered + lane * lane_bytes;
    Reorder(p.kernel_desc(p.dtype, false), from, cut.small->order, to);
    if (cut.two_orders())
      Reorder(p.kernel_desc(p.dtype, false), from, cut.large->order, to + first);
  }
  InParallel(pool, p.lanes * cut.parts, [&](int64_t i) {
    const int64_t lane = i / cut.parts, part = i % cut.parts,
                  at = lane * p.batch() + cut.begin(part);
    const int64_t n = cut.images(part);
    const Compiled& compiled = cut.at(part);
    char* weights =
        ordered + lane * lane_bytes + (cut.is_large(part) && cut.two_orders() ? first : 0);
    memory x(p.image_desc(n), Engine(), image + at * p.image_size() * p.item());
    memory y(p.out_desc(n), Engine(), out + at * p.out_size() * p.item());
    memory w(compiled.order, Engine(), weights);
    if (p.kind == kImageGradient) {
      return compiled.Run({{DNNL_ARG_DIFF_SRC, x}, {DNNL_ARG_WEIGHTS, w}, {DNNL_ARG_DIFF_DST, y}});
    }
    Arguments arguments{{DNNL_ARG_SRC, x}, {DNNL_ARG_WEIGHTS, w}, {DNNL_ARG_DST, y}};
    if (p.bias) {
      memory b(p.bias_desc(p.dtype), Engine(), bias + lane * p.features() * p.item());
      arguments.emplace(DNNL_ARG_BIAS, b);
    }
    compiled.Run(std::move(arguments));
  });
}

// Adds rows of floats that lie `stride` apart to the first, from column `begin` to `end`, always in
// this order.
void AddUp(float* rows, int64_t count, int64_t stride, int64_t begin, int64_t end) {
  for (int64_t i = 1; i < count; ++i) {
    const float* row = rows + i * stride;
    for (int64_t j = begin; j < end; ++j) rows[j] += row[j];
  }
}

// Reads an image and the gradient of the output, writes the gradient of the kernel and of a bias.
void ToKernel(const Problem& p, ffi::ThreadPool& pool, char* image, char* out, char* kernel,
              char* bias) {
  const Cut cut(p);
  // A row for each part: the kernel in oneDNN's order, then the bias.
  const size_t kernel_bytes = Aligned(cut.small->order.get_size());
  const size_t row_bytes = kernel_bytes + (p.bias ? Aligned(p.features() * sizeof(float)) : 0);
  thread_local Scratch scratch;
  char* rows = scratch.Get(p.lanes * cut.parts * row_bytes);
  InParallel(pool, p.lanes * cut.parts, [&](int64_t i) {
    const int64_t lane = i / cut.parts, part = i % cut.parts,
                  at = lane * p.batch() + cut.begin(part);
    const int64_t n = cut.images(part);
    const Compiled& compiled = cut.at(part);
    char* row = rows + i * row_bytes;
    thread_local Scratch other;
    const bool differs = cut.is_large(part) && cut.two_orders();
    char* target = differs ? other.Get(compiled.order.get_size()) : row;
    Arguments arguments{
        {DNNL_ARG_SRC, memory(p.image_desc(n), Engine(), image + at * p.image_size() * p.item())},
        {DNNL_ARG_DIFF_DST, memory(p.out_desc(n), Engine(), out + at * p.out_size() * p.item())},
        {DNNL_ARG_DIFF_WEIGHTS, memory(compiled.order, Engine(), target)}};
    if (p.bias) {
      arguments.emplace(DNNL_ARG_DIFF_BIAS,
                        memory(p.bias_desc(type::f32), Engine(), row + kernel_bytes));
    }
    compiled.Run(std::move(arguments));
    if (differs) Reorder(compiled.order, target, cut.small->order, row);
  });
  const int64_t stride = row_bytes / sizeof(float);
  const int64_t slices =
      std::max<int64_t>(1, std::min<int64_t>(kMostParts, stride * cut.parts / 65536));
  InParallel(pool, p.lanes * slices, [&](int64_t i) {
    char* lane = rows + i / slices * cut.parts * row_bytes;
    const int64_t slice = i % slices;
    AddUp(reinterpret_cast<float*>(lane), cut.parts, stride, stride * slice / slices,
          stride * (slice + 1) / slices);
  });
  for (int64_t lane = 0; lane < p.lanes; ++lane) {
    char* row = rows + lane * cut.parts * row_bytes;
    Reorder(cut.small->order, row, p.kernel_desc(p.dtype, false),
            kernel + lane * p.kernel_size() * p.item());
    if (!p.bias) continue;
    Reorder(p.bias_desc(type::f32), row + kernel_bytes, p.bias_desc(p.dtype),
            bias + lane * p.features() * p.item());
  }
}

ffi::Error Forward(ffi::ThreadPool pool, ffi::RemainingArgs arguments, ffi::Result<AnyBuffer> y,
                   Numbers strides, Numbers pads, int64_t groups) {
  auto x = *arguments.get<AnyBuffer>(0), kernel = *arguments.get<AnyBuffer>(1);
  const bool has_bias = arguments.size() == 3;
  return Guarded("convolution: image, kernel, result", {Shape(x), Shape(kernel), Shape(*y)}, [&] {
    char* bias = has_bias ? Data(*arguments.get<AnyBuffer>(2)) : nullptr;
    Problem p(kForward, Type(x), has_bias, Shape(x), Shape(kernel), Shape(*y), strides, pads,
              groups);
    ThroughKernel(p, pool, Data(x), Data(kernel), bias, Data(*y));
  });
}

ffi::Error ImageGradient(ffi::ThreadPool pool, AnyBuffer dy, AnyBuffer kernel,
                         ffi::Result<AnyBuffer> dx, Numbers strides, Numbers pads, int64_t groups) {
  const char* name = "image gradient of a convolution: gradient, kernel, result";
  return Guarded(name, {Shape(dy), Shape(kernel), Shape(*dx)}, [&] {
    Problem p(kImageGradient, Type(dy), false, Shape(*dx), Shape(kernel), Shape(dy), strides, pads,
              groups);
    ThroughKernel(p, pool, Data(*dx), Data(kernel), nullptr, Data(dy));
  });
}

ffi::Error KernelGradient(ffi::ThreadPool pool, AnyBuffer x, AnyBuffer dy,
                          ffi::RemainingRets results, Numbers strides, Numbers pads,
                          int64_t groups) {
  auto dkernel = *results.get<AnyBuffer>(0);
  const bool has_bias = results.size() == 2;
  const char* name = "kernel gradient of a convolution: image, gradient, result";
  return Guarded(name, {Shape(x), Shape(dy), Shape(*dkernel)}, [&] {
    char* bias = has_bias ? Data(**results.get<AnyBuffer>(1)) : nullptr;
    Problem p(kKernelGradient, Type(x), has_bias, Shape(x), Shape(*dkernel), Shape(dy), strides,
              pads, groups);
    ToKernel(p, pool, Data(x), Data(dy), Data(*dkernel), bias);
  });
}

}  // namespace

#define ATTRIBUTES .Attr<Numbers>("strides").Attr<Numbers>("pads").Attr<int64_t>("groups")

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    convolution, Forward,
    ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().RemainingArgs().Ret<AnyBuffer>() ATTRIBUTES);
XLA_FFI_DEFINE_HANDLER_SYMBOL(
    image_gradient, ImageGradient,
    ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<AnyBuffer>().Arg<AnyBuffer>().Ret<AnyBuffer>()
        ATTRIBUTES);
XLA_FFI_DEFINE_HANDLER_SYMBOL(
    kernel_gradient, KernelGradient,
    ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<AnyBuffer>().Arg<AnyBuffer>().RemainingRets()
        ATTRIBUTES);

}  // namespace lepton
