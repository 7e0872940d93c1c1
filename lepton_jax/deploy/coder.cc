// The coder of coder.py, bit for bit; that file says what is done and why.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

constexpr int kHalf = 1 << 15, kExponents = 16;
const int32_t *kRates, *kSquash, *kStretch;

int Length(uint32_t value) { return value ? 32 - __builtin_clz(value) : 0; }

struct Entry {
  int32_t p = kHalf, n = 0;
  void Learn(int bit) {
    p += static_cast<int32_t>((static_cast<int64_t>((bit << 16) - p) * kRates[n]) >> 16);
    p = std::clamp(p, 1, 65535);
    n = std::min(n + 1, 255);
  }
};

struct Model {
  std::vector<Entry> near{32}, density{14 * 14}, sign{9}, exponent{16 * kExponents},
      mantissa{8 * kExponents};
  int64_t weights[4][5];
  Model() {
    for (auto& set : weights) std::fill(set, set + 5, 20000);
  }
};

struct Encoder {
  std::vector<uint8_t> out;
  uint64_t low = 0;
  uint32_t range = 0xFFFFFFFF;

  int Bit(int p, int bit) {
    uint32_t bound = (range >> 16) * p;
    if (bit) {
      range = bound;
    } else {
      low += bound;
      range -= bound;
      Carry();
    }
    while (range < 1u << 24) {
      out.push_back(low >> 24);
      low = low << 8 & 0xFFFFFFFF;
      range <<= 8;
    }
    return bit;
  }

  void Carry() {
    if (low >> 32 == 0) return;
    low &= 0xFFFFFFFF;
    size_t i = out.size() - 1;
    while (out[i] == 255) out[i--] = 0;
    ++out[i];
  }

  void Finish() {
    int size = 0;
    uint64_t value = 0;
    for (; size < 5; ++size) {
      uint64_t rest = (uint64_t{1} << (32 - 8 * size)) - 1;
      value = (low + rest) & ~rest;
      if (value < low + range) break;
    }
    low = value;
    Carry();
    for (int i = 0; i < size; ++i) out.push_back(low >> (24 - 8 * i));
    while (!out.empty() && out.back() == 0) out.pop_back();
  }
};

struct Decoder {
  const uint8_t* data;
  size_t size, at = 0;
  uint32_t code = 0, range = 0xFFFFFFFF;
  Decoder(const uint8_t* data, size_t size) : data(data), size(size) {
    for (int i = 0; i < 4; ++i) code = code << 8 | Next();
  }
  uint32_t Next() { return at < size ? data[at++] : 0; }

  int Bit(int p, int) {
    uint32_t bound = (range >> 16) * p;
    int bit = code < bound;
    if (bit) {
      range = bound;
    } else {
      code -= bound;
      range -= bound;
    }
    while (range < 1u << 24) {
      code = code << 8 | Next();
      range <<= 8;
    }
    return bit;
  }
};

template <class Coder>
int Learned(Coder& coder, Entry& entry, int bit) {
  bit = coder.Bit(std::clamp(entry.p, 32, 65504), bit);
  entry.Learn(bit);
  return bit;
}

template <class Coder>
int Mixed(Model& model, Coder& coder, int near, int density, int at_column, int at_row, int bit) {
  Entry &one = model.near[near], &two = model.density[density];
  int inputs[5] = {kStretch[one.p >> 4], kStretch[two.p >> 4],
                   kStretch[std::min(at_column >> 4, 4095)],
                   kStretch[std::min(at_row >> 4, 4095)], 256};
  int64_t* weights = model.weights[near & 3];
  int64_t total = 0;
  for (int i = 0; i < 5; ++i) total += weights[i] * inputs[i];
  int p = kSquash[std::clamp<int64_t>(total >> 16, -2047, 2047) + 2048];
  bit = coder.Bit(p, bit);
  int64_t error = (bit << 16) - p;
  for (int i = 0; i < 5; ++i) weights[i] += (error * inputs[i] + (1 << 14)) >> 15;
  one.Learn(bit);
  two.Learn(bit);
  return bit;
}

// 0 where a level has more than 16 bits.
template <class Coder>
uint32_t Magnitude(Model& model, Coder& coder, int context, uint32_t size) {
  int length = Length(size) - 1, found = 0;
  while (found < kExponents &&
         Learned(coder, model.exponent[context * kExponents + found], found < length))
    ++found;
  if (found == kExponents) return 0;
  uint32_t value = 1, node = 1;
  for (int i = 0; i < found; ++i) {
    int bit = size >> (found - 1 - i) & 1;
    if (i < 3) {
      bit = Learned(coder, model.mantissa[8 * found + node], bit);
      node = 2 * node + bit;
    } else {
      bit = coder.Bit(kHalf, bit);
    }
    value = 2 * value + bit;
  }
  return value;
}

template <class Coder>
bool Code(Model& model, Coder& coder, int32_t* levels, int64_t rows, int64_t columns) {
  std::vector<int64_t> counts(columns);
  std::vector<uint8_t> signs(columns), exponents(columns);
  for (int64_t r = 0; r < rows; ++r) {
    int64_t count = 0;
    int left = 0, left_sign = 0, left_exponent = 0, before = 0;
    int32_t* row = levels + r * columns;
    const int32_t* above = r ? row - columns : nullptr;
    for (int64_t c = 0; c < columns; ++c) {
      int32_t level = row[c];
      int at_column = ((2 * counts[c] + 1) << 16) / (2 * r + 2);
      int at_row = ((2 * count + 1) << 16) / (2 * c + 2);
      int up = above && above[c] != 0, corner = above && c && above[c - 1] != 0,
          next = above && c + 1 < columns && above[c + 1] != 0;
      int near = left | up << 1 | before << 2 | corner << 3 | next << 4;
      int density = Length(at_column >> 4) * 14 + Length(at_row >> 4);
      int one = Mixed(model, coder, near, density, at_column, at_row, level != 0);
      before = left;
      left = one;
      row[c] = 0;
      if (!one) continue;
      int sign = Learned(coder, model.sign[3 * left_sign + signs[c]], level < 0);
      int context = 4 * std::min(left_exponent, 3) + std::min<int>(exponents[c], 3);
      uint32_t size = Magnitude(model, coder, context, level < 0 ? -level : level);
      if (!size) return false;
      left_sign = signs[c] = 1 + sign;
      left_exponent = exponents[c] = Length(size);
      ++counts[c];
      ++count;
      row[c] = sign ? -static_cast<int32_t>(size) : size;
    }
  }
  return true;
}

template <class Coder>
bool CodeAll(Coder& coder, int32_t* levels, const int64_t* shapes, int64_t count) {
  Model vectors, matrices;
  for (int64_t i = 0; i < count; ++i) {
    int64_t rows = shapes[2 * i], columns = shapes[2 * i + 1];
    if (!Code(rows > 1 ? matrices : vectors, coder, levels, rows, columns)) return false;
    levels += rows * columns;
  }
  return true;
}

void Use(const int32_t* rates, const int32_t* squash, const int32_t* stretch) {
  kRates = rates;
  kSquash = squash;
  kStretch = stretch;
}

}  // namespace

extern "C" {

// Writes at most `room` bytes; returns how many there are.
int64_t lepton_encode(int32_t* levels, const int64_t* shapes, int64_t count, uint8_t* out,
                      int64_t room, const int32_t* rates, const int32_t* squash,
                      const int32_t* stretch) {
  Use(rates, squash, stretch);
  Encoder coder;
  CodeAll(coder, levels, shapes, count);
  coder.Finish();
  int64_t size = coder.out.size();
  std::memcpy(out, coder.out.data(), std::min(size, room));
  return size;
}

// 1 where all levels could be read.
int lepton_decode(const uint8_t* data, int64_t size, const int64_t* shapes, int64_t count,
                  int32_t* levels, const int32_t* rates, const int32_t* squash,
                  const int32_t* stretch) {
  Use(rates, squash, stretch);
  Decoder coder(data, size);
  return CodeAll(coder, levels, shapes, count);
}

}  // extern "C"
