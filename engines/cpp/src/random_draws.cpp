#include "random_draws.h"

#include <algorithm>
#include <array>
#include <cstdio>
#include <string_view>

namespace flowless::detail {
namespace {

// Seed of the random draws of an evaluation (_DRAW_SEED in pipeline/clip/sampling.py).
constexpr uint32_t kDrawSeed = 0;

using Digest = std::array<uint32_t, 4>;

uint64_t rotatedRight(uint64_t value, unsigned bits) { return value >> bits | value << ((64 - bits) & 63); }

void mixBlake(std::array<uint64_t, 16>& v, size_t a, size_t b, size_t c, size_t d, uint64_t x, uint64_t y) {
  v[a] += v[b] + x;
  v[d] = rotatedRight(v[d] ^ v[a], 32);
  v[c] += v[d];
  v[b] = rotatedRight(v[b] ^ v[c], 24);
  v[a] += v[b] + y;
  v[d] = rotatedRight(v[d] ^ v[a], 16);
  v[c] += v[d];
  v[b] = rotatedRight(v[b] ^ v[c], 63);
}

// BLAKE2b (RFC 7693) without a key, 16 bytes long, of a text of at most 128 bytes.
Digest blake2b(std::string_view text) {
  constexpr uint64_t kInitial[8] = {0x6a09e667f3bcc908, 0xbb67ae8584caa73b, 0x3c6ef372fe94f82b, 0xa54ff53a5f1d36f1,
                                    0x510e527fade682d1, 0x9b05688c2b3e6c1f, 0x1f83d9abfb41bd6b, 0x5be0cd19137e2179};
  constexpr uint8_t kOrder[10][16] = {
      {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}, {14, 10, 4, 8, 9, 15, 13, 6, 1, 12, 0, 2, 11, 7, 5, 3},
      {11, 8, 12, 0, 5, 2, 15, 13, 10, 14, 3, 6, 7, 1, 9, 4}, {7, 9, 3, 1, 13, 12, 11, 14, 2, 6, 5, 10, 4, 0, 15, 8},
      {9, 0, 5, 7, 2, 4, 10, 15, 14, 1, 11, 12, 6, 8, 3, 13}, {2, 12, 6, 10, 0, 11, 8, 3, 4, 13, 7, 5, 15, 14, 1, 9},
      {12, 5, 1, 15, 14, 13, 4, 10, 0, 7, 6, 3, 9, 2, 8, 11}, {13, 11, 7, 14, 12, 1, 3, 9, 5, 0, 15, 4, 8, 6, 2, 10},
      {6, 15, 14, 9, 11, 3, 0, 8, 12, 2, 13, 7, 1, 4, 10, 5}, {10, 2, 8, 4, 7, 6, 1, 5, 15, 11, 9, 14, 3, 12, 13, 0}};
  std::array<uint64_t, 16> message{};
  for (size_t at = 0; at < text.size(); ++at) {
    message[at / 8] |= static_cast<uint64_t>(static_cast<uint8_t>(text[at])) << (8 * (at % 8));
  }
  std::array<uint64_t, 16> v;
  std::copy(kInitial, kInitial + 8, v.begin());
  std::copy(kInitial, kInitial + 8, v.begin() + 8);
  uint64_t const first = kInitial[0] ^ 0x01010010;  // 16 bytes, no key, one leaf
  v[0] = first;
  v[12] ^= text.size();
  v[14] = ~v[14];  // the last block
  for (size_t round = 0; round < 12; ++round) {
    uint8_t const* order = kOrder[round % 10];
    for (size_t column = 0; column < 4; ++column) {
      mixBlake(v, column, column + 4, column + 8, column + 12, message[order[2 * column]],
               message[order[2 * column + 1]]);
    }
    for (size_t at = 0; at < 4; ++at) {
      mixBlake(v, at, 4 + (at + 1) % 4, 8 + (at + 2) % 4, 12 + (at + 3) % 4, message[order[8 + 2 * at]],
               message[order[9 + 2 * at]]);
    }
  }
  uint64_t const low = first ^ v[0] ^ v[8];
  uint64_t const high = kInitial[1] ^ v[1] ^ v[9];
  return {static_cast<uint32_t>(low), static_cast<uint32_t>(low >> 32), static_cast<uint32_t>(high),
          static_cast<uint32_t>(high >> 32)};
}

// NumPy's SeedSequence of six numbers: the four 64-bit numbers that seed its PCG64.
std::array<uint64_t, 4> spreadSeed(std::array<uint32_t, 6> const& entropy) {
  uint32_t constant = 0x43b0d7e5;
  auto const hashed = [&](uint32_t value) {
    value ^= constant;
    constant *= 0x931e8875;
    value *= constant;
    return value ^ value >> 16;
  };
  std::array<uint32_t, 4> pool;
  auto const stir = [&](size_t at, uint32_t value) {
    uint32_t const mixed = 0xca01f9ddU * pool[at] - 0x4973f715U * value;
    pool[at] = mixed ^ mixed >> 16;
  };
  for (size_t at = 0; at < pool.size(); ++at) {
    pool[at] = hashed(entropy[at]);
  }
  for (size_t from = 0; from < entropy.size(); ++from) {
    for (size_t at = 0; at < pool.size(); ++at) {
      if (from != at) {
        stir(at, hashed(from < pool.size() ? pool[from] : entropy[from]));
      }
    }
  }
  std::array<uint64_t, 4> seeds{};
  uint32_t multiplier = 0x8b51f9dd;
  for (size_t at = 0; at < 8; ++at) {
    uint32_t value = pool[at % 4] ^ multiplier;
    multiplier *= 0x58f38ded;
    value *= multiplier;
    seeds[at / 2] |= static_cast<uint64_t>(value ^ value >> 16) << (32 * (at % 2));
  }
  return seeds;
}

// NumPy's Generator over PCG64 (XSL-RR, 128 bits of state), as far as `integers` with one bound.
class Generator {
 public:
  explicit Generator(std::array<uint64_t, 4> const& seeds) : mIncrement((wide(seeds[2], seeds[3]) << 1) | 1) {
    mState = mIncrement;  // a step from 0
    mState += wide(seeds[0], seeds[1]);
    step();
  }

  // A number below `bound`, which is at least 1: Lemire's method, in 32 bits where the bound fits.
  uint64_t below(uint64_t bound) {
    if (bound == 1) {
      return 0;
    }
    if (bound == uint64_t{1} << 32) {
      return next32();
    }
    if (bound < uint64_t{1} << 32) {
      uint32_t const rejected = static_cast<uint32_t>((uint64_t{1} << 32) % bound);
      uint64_t product = next32() * bound;
      while (static_cast<uint32_t>(product) < rejected) {
        product = next32() * bound;
      }
      return product >> 32;
    }
    uint64_t const rejected = (0 - bound) % bound;
    Wide product = Wide{next64()} * bound;
    while (static_cast<uint64_t>(product) < rejected) {
      product = Wide{next64()} * bound;
    }
    return static_cast<uint64_t>(product >> 64);
  }

 private:
  using Wide = unsigned __int128;

  static Wide wide(uint64_t high, uint64_t low) { return Wide{high} << 64 | low; }

  void step() { mState = mState * wide(2549297995355413924U, 4865540595714422341U) + mIncrement; }

  uint64_t next64() {
    step();
    return rotatedRight(static_cast<uint64_t>(mState >> 64) ^ static_cast<uint64_t>(mState),
                        static_cast<unsigned>(mState >> 122));
  }

  // Both halves of a 64-bit number, the low one first.
  uint64_t next32() {
    mHalfLeft = !mHalfLeft;
    if (mHalfLeft) {
      mNumber = next64();
      return static_cast<uint32_t>(mNumber);
    }
    return mNumber >> 32;
  }

  Wide mIncrement;
  Wide mState = 0;
  uint64_t mNumber = 0;
  bool mHalfLeft = false;
};

}  // namespace

void randomStarts(ClipSpec const& spec, int64_t numFrames, int32_t draw, int64_t* starts) {
  char buffer[32];  // 19 digits and the rest
  int const length = std::snprintf(buffer, sizeof buffer, "%lld frames", static_cast<long long>(numFrames));
  Digest const text = blake2b({buffer, static_cast<size_t>(length)});
  Generator generator(spreadSeed({kDrawSeed, static_cast<uint32_t>(draw), text[0], text[1], text[2], text[3]}));
  int64_t const possible = numFrames - spec.framesPerSegment + 1;
  int64_t const average = possible / spec.segments;
  int64_t* const end = starts + spec.segments;
  if (average > 0) {
    for (int64_t segment = 0; segment < spec.segments; ++segment) {
      starts[segment] = segment * average + static_cast<int64_t>(generator.below(static_cast<uint64_t>(average)));
    }
  } else if (numFrames > spec.segments) {
    std::generate(starts, end, [&] {
      return static_cast<int64_t>(generator.below(static_cast<uint64_t>(std::max(possible, int64_t{1}))));
    });
    std::sort(starts, end);
  } else {
    std::fill(starts, end, 0);
  }
}

}  // namespace flowless::detail
