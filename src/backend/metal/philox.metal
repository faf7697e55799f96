// Dropout's random bits: Philox 4x32-7, as src/backend/philox.h has it.

// The 16 bits of one element: counter offset + element / 8, field element mod 8.
inline uint philox_field(ulong seed, ulong counter, uint field) {
  uint c0 = uint(counter), c1 = uint(counter >> 32), c2 = 0, c3 = 0;
  uint k0 = uint(seed), k1 = uint(seed >> 32);
  for (int round = 0; round < 7; ++round) {
    const uint high0 = mulhi(0xD2511F53u, c0), low0 = 0xD2511F53u * c0;
    const uint high1 = mulhi(0xCD9E8D57u, c2), low1 = 0xCD9E8D57u * c2;
    c0 = high1 ^ c1 ^ k0;
    c1 = low1;
    c2 = high0 ^ c3 ^ k1;
    c3 = low0;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  const uint low = field < 2 ? c0 : c1, high = field < 6 ? c2 : c3;
  return ((field < 4 ? low : high) >> (field % 2 * 16)) & 0xFFFFu;
}

// drop(x) of the element with a row-major index, rounded to T. A dropped element is 0 whatever x is.
template <bool kDrops>
struct Dropout {
  template <typename T>
  T apply(T x, ulong element) const {
    if (!kDrops) return x;
    const bool kept = philox_field(seed, offset + element / 8, uint(element % 8)) >= threshold;
    return kept ? T(float(x) * keep) : T(0.0f);
  }
  ulong seed;
  ulong offset;
  uint threshold;
  float keep;
};
template <bool kDrops>
Dropout<kDrops> dropout_of(const device ulong* seed, const device ulong* offset, uint threshold,
                           float keep) {
  return {kDrops ? *seed : 0, kDrops ? *offset : 0, threshold, keep};
}
