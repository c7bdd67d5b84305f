// The process's allocator, jemalloc: what it keeps of memory that was freed.
//
// Why not the C library's: an atomic consume frees some forty things of mixed sizes, most of them
// on another turn of the loop than the one that made them. Of row h's time in a sidecar a third
// went into its lists of such; with this one the same sidecar does a fifth more.

import CJemalloc

enum Allocator {
  /// What is not used again within this goes back to the system: bursts are shorter, and what a
  /// large table took goes back when it goes.
  static let keptMilliseconds = 1_000

  /// Call once, before threads are made.
  static func configure() {
    // Of arenas to come, and of the one that is there.
    set("arenas.dirty_decay_ms", keptMilliseconds)
    set("arena.0.dirty_decay_ms", keptMilliseconds)
  }

  /// Everything that was freed goes back now; takes milliseconds.
  static func giveBack() {
    _ = unsafe mallctl("arena.\(MALLCTL_ARENAS_ALL).purge", nil, nil, nil, 0)
  }

  private static func set(_ name: String, _ value: Int) {
    var value = value
    let code = unsafe mallctl(name, nil, nil, &value, MemoryLayout<Int>.size)
    assert(code == 0, "jemalloc knows no \(name)")
  }
}
