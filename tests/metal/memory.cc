#include "metal/memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <new>

namespace graft::standin {
namespace {

// Addresses, not memory: pages are there once touched. Threadgroup memory is the first part.
constexpr std::size_t kThreadgroupBytes = std::size_t{4} << 20, kBytes = std::size_t{512} << 20;
constexpr std::size_t kGap = std::size_t{64} << 10;  // an index that misses a buffer lands in it
constexpr std::size_t kCellBytes = 2;                // the smallest element of a tensor

bool is_only_counting = false;

template <class T>
T* reserve(std::size_t bytes) {
  void* const at = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (at == MAP_FAILED) throw std::bad_alloc();
  return static_cast<T*>(at);
}

// Whether the thread of `later` is sure to see what that of `earlier` did.
bool ordered(const Stamp& earlier, const Stamp& later) {
  constexpr std::uint32_t kLanes = 32;
  if (earlier.group == 0) return true;
  if (earlier.group != later.group) return false;
  if (earlier.thread == later.thread || earlier.epoch < later.epoch) return true;
  return earlier.thread / kLanes == later.thread / kLanes && earlier.simd_epoch < later.simd_epoch;
}

std::string name_of(const Stamp& stamp) {
  return "thread " + std::to_string(stamp.thread) + " of threadgroup " +
         std::to_string(stamp.group - 1);
}

}  // namespace

// Two readers, of different threads: a write is checked against one that is not the writer.
struct Memory::Cell {
  Stamp writer, reader, other_reader;
  bool atomic;  // the writer was
};

void Memory::only_count() { is_only_counting = true; }

Memory::Memory()
    : base_(reserve<std::byte>(kBytes)),
      shadow_(reserve<Cell>(kBytes / kCellBytes * sizeof(Cell))),
      touched_(reserve<bool>(kBytes / kCellBytes)) {
  release(Kind::kDevice);
  release(Kind::kThreadgroup);
}

Memory::~Memory() {
  munmap(base_, kBytes);
  munmap(shadow_, kBytes / kCellBytes * sizeof(Cell));
  munmap(touched_, kBytes / kCellBytes);
}

std::size_t Memory::cell_of(const std::byte* address) const {
  return static_cast<std::size_t>(address - base_) / kCellBytes;
}

void* Memory::allocate(Kind kind, std::size_t bytes, const std::string& name, bool initialized,
                       bool constant) {
  std::byte*& next = next_[static_cast<int>(kind)];
  std::byte* const end = base_ + (kind == Kind::kThreadgroup ? kThreadgroupBytes : kBytes);
  if (bytes + 2 * kGap > static_cast<std::size_t>(end - next)) throw std::bad_alloc();
  std::byte* const begin = next + kGap;
  regions_[static_cast<int>(kind)].push_back({begin, bytes, name, initialized, constant});
  std::memset(begin, 0, bytes);
  const std::size_t first = cell_of(begin), cells = (bytes + kCellBytes - 1) / kCellBytes;
  std::fill_n(touched_ + first, cells, false);
  if (!is_only_counting) std::fill_n(shadow_ + first, cells, Cell{});
  next = begin + (bytes + 63) / 64 * 64;
  return begin;
}

void Memory::release(Kind kind) {
  regions_[static_cast<int>(kind)].clear();
  next_[static_cast<int>(kind)] = kind == Kind::kThreadgroup ? base_ : base_ + kThreadgroupBytes;
}

std::uint64_t Memory::touched() const {
  std::uint64_t bytes = 0;
  for (const Region& region : regions_[static_cast<int>(Kind::kDevice)]) {
    const bool *begin = touched_ + cell_of(region.begin),
               *end = touched_ + cell_of(region.begin + region.bytes + kCellBytes - 1);
    bytes += kCellBytes * static_cast<std::uint64_t>(std::count(begin, end, true));
  }
  return bytes;
}

bool Memory::contains(const void* address) const {
  const auto* const byte = static_cast<const std::byte*>(address);
  return byte >= base_ && byte < base_ + kBytes;
}

Memory::Kind Memory::kind_of(const void* address) const {
  return static_cast<const std::byte*>(address) < base_ + kThreadgroupBytes ? Kind::kThreadgroup
                                                                            : Kind::kDevice;
}

// The last region that begins at `address` or before; null if there is none.
const Memory::Region* Memory::find(Kind kind, const std::byte* address) const {
  const auto& regions = regions_[static_cast<int>(kind)];
  const auto after =
      std::upper_bound(regions.begin(), regions.end(), address,
                       [](const std::byte* at, const Region& region) { return at < region.begin; });
  return after == regions.begin() ? nullptr : &*(after - 1);
}

std::string Memory::note(Access access, const void* address, std::size_t bytes,
                         const Stamp& stamp) {
  const auto* const begin = static_cast<const std::byte*>(address);
  const Kind kind = kind_of(address);
  const char* const verb = access == Access::kRead ? "reads" : "writes";
  const Region* region = find(kind, begin);
  if (region == nullptr || begin + bytes > region->begin + region->bytes) {
    // It is blamed on the region before it; what lies before the first is blamed on that.
    if (region == nullptr && !regions_[static_cast<int>(kind)].empty()) {
      region = &regions_[static_cast<int>(kind)].front();
    }
    const std::string where = region == nullptr ? "no buffer at all"
                                                : "byte " + std::to_string(begin - region->begin) +
                                                      " of " + region->name + ", which has " +
                                                      std::to_string(region->bytes);
    return "out of bounds: " + name_of(stamp) + " " + verb + " " + where;
  }
  if (region->constant && access != Access::kRead) {
    return "write to a constant buffer: " + region->name;
  }

  const std::size_t first_cell = cell_of(begin), end_cell = cell_of(begin + bytes + kCellBytes - 1);
  std::fill(touched_ + first_cell, touched_ + end_cell, true);
  if (is_only_counting) return "";

  // Most accesses are right, and there are millions: words are made for one that is not.
  const auto at = [&] {
    return "byte " + std::to_string(begin - region->begin) + " of " + region->name;
  };
  for (Cell* cell = shadow_ + first_cell; cell != shadow_ + end_cell; ++cell) {
    const bool both_atomic = access == Access::kAtomic && cell->atomic;
    if (!both_atomic && !ordered(cell->writer, stamp)) {
      return "race: " + name_of(stamp) + " " + verb + " " + at() + ", which " +
             name_of(cell->writer) + " writes without a barrier between";
    }
    if (access == Access::kRead) {
      if (cell->writer.group == 0 && !region->initialized) {
        return "uninitialised: " + name_of(stamp) + " reads " + at() + ", which nobody has written";
      }
      const bool same = cell->reader.group == stamp.group && cell->reader.thread == stamp.thread;
      if (!same) cell->other_reader = cell->reader;
      cell->reader = stamp;
      continue;
    }
    for (const Stamp& reader : {cell->reader, cell->other_reader}) {
      if (!ordered(reader, stamp)) {
        return "race: " + name_of(stamp) + " writes " + at() + ", which " + name_of(reader) +
               " reads without a barrier between";
      }
    }
    cell->writer = stamp;
    cell->atomic = access == Access::kAtomic;
  }
  return "";
}

}  // namespace graft::standin
