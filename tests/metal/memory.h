#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace graft::standin {

/// Who touches memory, and when: enough to tell whether two accesses have an order.
struct Stamp {
  std::uint32_t group = 0;       ///< Number of the threadgroup, from 1; 0 for "never".
  std::uint32_t thread = 0;      ///< Its index in the threadgroup.
  std::uint32_t epoch = 0;       ///< Threadgroup barriers on this kind of memory it has passed.
  std::uint32_t simd_epoch = 0;  ///< Simdgroup barriers on this kind of memory it has passed.
};

/// The memory that shaders see, in one range of addresses with wide gaps, and for every two bytes
/// of it who wrote and read them last. So an access out of bounds, a race, or a read of what nobody
/// has written is found at the access itself.
class Memory {
 public:
  enum class Kind : std::uint8_t { kDevice, kThreadgroup };
  enum class Access : std::uint8_t { kRead, kWrite, kAtomic };

  /// From now on accesses out of bounds are found, but not races and reads of what nobody has
  /// written: for a program that only counts, twice as fast.
  static void only_count();

  Memory();
  ~Memory();
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;

  /// `bytes` of zeros after a gap; `name` is for messages. A buffer counts as written if it is
  /// `initialized`; a shader may read a `constant` one only.
  void* allocate(Kind kind, std::size_t bytes, const std::string& name, bool initialized,
                 bool constant);

  /// Frees all that was allocated of `kind`.
  void release(Kind kind);

  /// Bytes of device memory that have been read or written since they were allocated.
  std::uint64_t touched() const;

  bool contains(const void* address) const;

  /// Which kind of memory `address` is in; only if contains().
  Kind kind_of(const void* address) const;

  /// Takes note of an access, and says what is wrong with it; "" if nothing. `kDevice` or
  /// `kThreadgroup` stamps go with the address's kind.
  std::string note(Access access, const void* address, std::size_t bytes, const Stamp& stamp);

 private:
  struct Region {
    std::byte* begin;
    std::size_t bytes;
    std::string name;
    bool initialized;
    bool constant;
  };
  struct Cell;

  const Region* find(Kind kind, const std::byte* address) const;
  std::size_t cell_of(const std::byte* address) const;

  std::byte* base_;
  Cell* shadow_;
  bool* touched_;                   // by cell
  std::vector<Region> regions_[2];  // by kind, in order of address
  std::byte* next_[2];
};

}  // namespace graft::standin
