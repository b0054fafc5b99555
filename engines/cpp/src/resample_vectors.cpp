// The kernels of resample_pairs.h for AVX2, SSE4.1 and NEON, by their instructions.
#include <algorithm>
#include <cstring>

#include "resample.h"

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace flowless::detail {
namespace {

// The bytes of a pixel and the next that a shuffle puts side by side, each with an empty byte above it. An empty place
// stays negative, or beyond the vector, when the place of the first pixel is added.
constexpr int8_t kEmpty = -128;
constexpr int8_t kPairOrder[16] = {0, kEmpty, 3, kEmpty, 1,      kEmpty, 4,      kEmpty,
                                   2, kEmpty, 5, kEmpty, kEmpty, kEmpty, kEmpty, kEmpty};

#if defined(__x86_64__)

namespace avx2 {
#define FLOWLESS_TARGET __attribute__((target("avx2")))
using Vector = __m256i;
constexpr size_t kRowsPerVector = 2;

FLOWLESS_TARGET inline Vector every32(uint32_t value) { return _mm256_set1_epi32(static_cast<int>(value)); }
FLOWLESS_TARGET inline Vector add32(Vector a, Vector b) { return _mm256_add_epi32(a, b); }
FLOWLESS_TARGET inline Vector multiplyAdd(Vector a, Vector b) { return _mm256_madd_epi16(a, b); }
FLOWLESS_TARGET inline Vector shiftLeft(Vector a) { return _mm256_slli_epi32(a, kLowBits); }
FLOWLESS_TARGET inline Vector shiftRight(Vector a) { return _mm256_srli_epi32(a, kBits); }
FLOWLESS_TARGET inline Vector shuffle(Vector a, Vector order) { return _mm256_shuffle_epi8(a, order); }
FLOWLESS_TARGET inline Vector interleaveLow(Vector a, Vector b) { return _mm256_unpacklo_epi8(a, b); }
FLOWLESS_TARGET inline Vector interleaveHigh(Vector a, Vector b) { return _mm256_unpackhi_epi8(a, b); }
FLOWLESS_TARGET inline Vector load(uint8_t const* from) {
  return _mm256_loadu_si256(reinterpret_cast<Vector const*>(from));
}
FLOWLESS_TARGET inline void store(uint8_t* to, Vector a) { _mm256_storeu_si256(reinterpret_cast<Vector*>(to), a); }
FLOWLESS_TARGET inline Vector pack(Vector a, Vector b, Vector c, Vector d) {
  return _mm256_packus_epi16(_mm256_packus_epi32(a, b), _mm256_packus_epi32(c, d));
}
FLOWLESS_TARGET inline Vector pairOrder(size_t first) {
  __m128i const order = _mm_loadu_si128(reinterpret_cast<__m128i const*>(kPairOrder));
  return _mm256_broadcastsi128_si256(_mm_add_epi8(order, _mm_set1_epi8(static_cast<char>(first))));
}
FLOWLESS_TARGET inline Vector both(__m128i one, __m128i two) {
  return _mm256_inserti128_si256(_mm256_castsi128_si256(one), two, 1);
}
FLOWLESS_TARGET inline Vector load16(uint8_t const* const* from, size_t at) {
  return both(_mm_loadu_si128(reinterpret_cast<__m128i const*>(from[0] + at)),
              _mm_loadu_si128(reinterpret_cast<__m128i const*>(from[1] + at)));
}
FLOWLESS_TARGET inline Vector load8(uint8_t const* const* from, size_t at) {
  return both(_mm_loadl_epi64(reinterpret_cast<__m128i const*>(from[0] + at)),
              _mm_loadl_epi64(reinterpret_cast<__m128i const*>(from[1] + at)));
}
FLOWLESS_TARGET inline void storePixels(Vector a, uint8_t* const* to, size_t at) {
  Vector const packed = pack(a, a, a, a);
  int const one = _mm256_extract_epi32(packed, 0);
  int const two = _mm256_extract_epi32(packed, 4);
  std::memcpy(to[0] + at, &one, sizeof one);
  std::memcpy(to[1] + at, &two, sizeof two);
}

#include "resample_pairs.h"
#undef FLOWLESS_TARGET
}  // namespace avx2

namespace sse41 {
#define FLOWLESS_TARGET __attribute__((target("sse4.1")))
using Vector = __m128i;
constexpr size_t kRowsPerVector = 1;

FLOWLESS_TARGET inline Vector every32(uint32_t value) { return _mm_set1_epi32(static_cast<int>(value)); }
FLOWLESS_TARGET inline Vector add32(Vector a, Vector b) { return _mm_add_epi32(a, b); }
FLOWLESS_TARGET inline Vector multiplyAdd(Vector a, Vector b) { return _mm_madd_epi16(a, b); }
FLOWLESS_TARGET inline Vector shiftLeft(Vector a) { return _mm_slli_epi32(a, kLowBits); }
FLOWLESS_TARGET inline Vector shiftRight(Vector a) { return _mm_srli_epi32(a, kBits); }
FLOWLESS_TARGET inline Vector shuffle(Vector a, Vector order) { return _mm_shuffle_epi8(a, order); }
FLOWLESS_TARGET inline Vector interleaveLow(Vector a, Vector b) { return _mm_unpacklo_epi8(a, b); }
FLOWLESS_TARGET inline Vector interleaveHigh(Vector a, Vector b) { return _mm_unpackhi_epi8(a, b); }
FLOWLESS_TARGET inline Vector load(uint8_t const* from) {
  return _mm_loadu_si128(reinterpret_cast<Vector const*>(from));
}
FLOWLESS_TARGET inline void store(uint8_t* to, Vector a) { _mm_storeu_si128(reinterpret_cast<Vector*>(to), a); }
FLOWLESS_TARGET inline Vector pack(Vector a, Vector b, Vector c, Vector d) {
  return _mm_packus_epi16(_mm_packus_epi32(a, b), _mm_packus_epi32(c, d));
}
FLOWLESS_TARGET inline Vector pairOrder(size_t first) {
  return _mm_add_epi8(load(reinterpret_cast<uint8_t const*>(kPairOrder)), _mm_set1_epi8(static_cast<char>(first)));
}
FLOWLESS_TARGET inline Vector load16(uint8_t const* const* from, size_t at) { return load(from[0] + at); }
FLOWLESS_TARGET inline Vector load8(uint8_t const* const* from, size_t at) {
  return _mm_loadl_epi64(reinterpret_cast<Vector const*>(from[0] + at));
}
FLOWLESS_TARGET inline void storePixels(Vector a, uint8_t* const* to, size_t at) {
  int const pixel = _mm_cvtsi128_si32(pack(a, a, a, a));
  std::memcpy(to[0] + at, &pixel, sizeof pixel);
}

#include "resample_pairs.h"
#undef FLOWLESS_TARGET
}  // namespace sse41

constexpr Kernels kAvx2 = {"avx2", avx2::horizontal, avx2::vertical};
constexpr Kernels kSse41 = {"sse4.1", sse41::horizontal, sse41::vertical};

#elif defined(__aarch64__)

namespace neon {
#define FLOWLESS_TARGET
using Vector = uint8x16_t;
constexpr size_t kRowsPerVector = 1;

inline Vector every32(uint32_t value) { return vreinterpretq_u8_u32(vdupq_n_u32(value)); }
inline Vector add32(Vector a, Vector b) {
  return vreinterpretq_u8_u32(vaddq_u32(vreinterpretq_u32_u8(a), vreinterpretq_u32_u8(b)));
}
inline Vector multiplyAdd(Vector a, Vector b) {
  uint16x8_t const one = vreinterpretq_u16_u8(a);
  uint16x8_t const two = vreinterpretq_u16_u8(b);
  return vreinterpretq_u8_u32(vpaddq_u32(vmull_u16(vget_low_u16(one), vget_low_u16(two)), vmull_high_u16(one, two)));
}
inline Vector shiftLeft(Vector a) { return vreinterpretq_u8_u32(vshlq_n_u32(vreinterpretq_u32_u8(a), kLowBits)); }
inline Vector shiftRight(Vector a) { return vreinterpretq_u8_u32(vshrq_n_u32(vreinterpretq_u32_u8(a), kBits)); }
inline Vector shuffle(Vector a, Vector order) { return vqtbl1q_u8(a, order); }
inline Vector interleaveLow(Vector a, Vector b) { return vzip1q_u8(a, b); }
inline Vector interleaveHigh(Vector a, Vector b) { return vzip2q_u8(a, b); }
inline Vector load(uint8_t const* from) { return vld1q_u8(from); }
inline void store(uint8_t* to, Vector a) { vst1q_u8(to, a); }
inline uint16x8_t pack16(Vector a, Vector b) {
  return vcombine_u16(vqmovn_u32(vreinterpretq_u32_u8(a)), vqmovn_u32(vreinterpretq_u32_u8(b)));
}
inline Vector pack(Vector a, Vector b, Vector c, Vector d) {
  return vcombine_u8(vqmovn_u16(pack16(a, b)), vqmovn_u16(pack16(c, d)));
}
inline Vector pairOrder(size_t first) {
  return vaddq_u8(load(reinterpret_cast<uint8_t const*>(kPairOrder)), vdupq_n_u8(static_cast<uint8_t>(first)));
}
inline Vector load16(uint8_t const* const* from, size_t at) { return load(from[0] + at); }
inline Vector load8(uint8_t const* const* from, size_t at) { return vcombine_u8(vld1_u8(from[0] + at), vdup_n_u8(0)); }
inline void storePixels(Vector a, uint8_t* const* to, size_t at) {
  uint32_t const pixel = vgetq_lane_u32(vreinterpretq_u32_u8(pack(a, a, a, a)), 0);
  std::memcpy(to[0] + at, &pixel, sizeof pixel);
}

#include "resample_pairs.h"
#undef FLOWLESS_TARGET
}  // namespace neon

constexpr Kernels kNeon = {"neon", neon::horizontal, neon::vertical};
#endif

}  // namespace

Kernels const* kernelsAt(size_t index) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  Kernels const* const all[] = {__builtin_cpu_supports("avx2") ? &kAvx2 : nullptr,
                                __builtin_cpu_supports("sse4.1") ? &kSse41 : nullptr, &kPlainKernels};
#elif defined(__aarch64__)
  Kernels const* const all[] = {&kNeon, &kPlainKernels};
#else
  Kernels const* const all[] = {&kPlainKernels};
#endif
  for (Kernels const* kernels : all) {
    if (kernels != nullptr && index-- == 0) {
      return kernels;
    }
  }
  return nullptr;
}

}  // namespace flowless::detail
