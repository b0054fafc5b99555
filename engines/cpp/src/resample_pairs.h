// The two passes in vectors of any width. resample_vectors.cpp includes this once for each processor, in a namespace
// that has Vector and its operations, and with FLOWLESS_TARGET, the attribute of functions that use its instructions.
//
// A multiply-add takes pairs of 16-bit numbers: two taps at a time. A weight has up to 23 bits, so its low 11 bits and
// the bits above are summed separately and joined at the end.

constexpr size_t kRegisters = kRows / kRowsPerVector;

// Sums of the halves of weights times pixels, 32 bits each.
struct Sums {
  Vector low;
  Vector high;
};

FLOWLESS_TARGET inline Sums startSums() { return {every32(kHalf), every32(0)}; }

FLOWLESS_TARGET inline void addTaps(Sums& sums, Vector pixels, Vector low, Vector high) {
  sums.low = add32(sums.low, multiplyAdd(pixels, low));
  sums.high = add32(sums.high, multiplyAdd(pixels, high));
}

FLOWLESS_TARGET inline Vector rounded(Sums const& sums) { return shiftRight(add32(sums.low, shiftLeft(sums.high))); }

// A register holds a pixel of kRowsPerVector rows: red, green, blue and nothing, of two taps each.
FLOWLESS_TARGET void horizontal(Taps const& taps, uint8_t const* const* from, uint8_t* const* to) {
  Vector const taps01 = pairOrder(0);
  Vector const taps23 = pairOrder(2 * kChannels);
  uint32_t const* halves = taps.halves.data();
  auto const inside = static_cast<size_t>(taps.inside);
  for (size_t index = 0; index < inside; ++index) {
    size_t at = static_cast<size_t>(taps.first[index]) * kChannels;
    Sums sums[kRegisters];
    for (Sums& sum : sums) {
      sum = startSums();
    }
    int32_t tap = 0;
    for (; tap + 4 <= taps.taps; tap += 4, at += 4 * kChannels, halves += 4) {
      for (size_t part = 0; part < kRegisters; ++part) {
        Vector const pixels = load16(from + part * kRowsPerVector, at);
        addTaps(sums[part], shuffle(pixels, taps01), every32(halves[0]), every32(halves[1]));
        addTaps(sums[part], shuffle(pixels, taps23), every32(halves[2]), every32(halves[3]));
      }
    }
    if (tap < taps.taps) {
      for (size_t part = 0; part < kRegisters; ++part) {
        addTaps(sums[part], shuffle(load8(from + part * kRowsPerVector, at), taps01), every32(halves[0]),
                every32(halves[1]));
      }
      halves += 2;
    }
    for (size_t part = 0; part < kRegisters; ++part) {
      storePixels(rounded(sums[part]), to + part * kRowsPerVector, index * kChannels);
    }
  }
  horizontalBytes(taps, inside, from, to);
}

FLOWLESS_TARGET void vertical(Taps const& taps, size_t index, uint8_t const* from, size_t stride, uint8_t* to,
                              size_t bytes) {
  if (bytes < sizeof(Vector)) {
    kPlainKernels.vertical(taps, index, from, stride, to, bytes);
    return;
  }
  uint32_t const* const weights = &taps.halves[index * static_cast<size_t>(taps.taps)];
  for (size_t block = 0; block < bytes; block += sizeof(Vector)) {
    size_t const begin = std::min(block, bytes - sizeof(Vector));  // the last block may overlap the one before it
    Sums sums[4] = {startSums(), startSums(), startSums(), startSums()};
    uint8_t const* pixels = from + begin;
    uint32_t const* halves = weights;
    for (int32_t tap = 0; tap < taps.taps; tap += 2, pixels += 2 * stride, halves += 2) {
      Vector const one = load(pixels);
      Vector const two = load(pixels + stride);
      Vector const first = interleaveLow(one, two);
      Vector const second = interleaveHigh(one, two);
      Vector const low = every32(halves[0]);
      Vector const high = every32(halves[1]);
      addTaps(sums[0], interleaveLow(first, every32(0)), low, high);
      addTaps(sums[1], interleaveHigh(first, every32(0)), low, high);
      addTaps(sums[2], interleaveLow(second, every32(0)), low, high);
      addTaps(sums[3], interleaveHigh(second, every32(0)), low, high);
    }
    store(to + begin, pack(rounded(sums[0]), rounded(sums[1]), rounded(sums[2]), rounded(sums[3])));
  }
}
