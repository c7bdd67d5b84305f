// The process's allocator, jemalloc: what it keeps of memory that was freed.
//
// Why not the C library's: an atomic consume frees some forty things of mixed sizes, most of them
// on another turn of the loop than the one that made them. Of row h's time in a sidecar a third
// went into its lists of such; with this one the same sidecar does a fifth more. A build for the
// thread sanitizer goes without.

import Logging

#if canImport(CJemalloc)
  import CJemalloc
#endif

package enum Allocator {
  /// What is not used again within this goes back to the system: bursts are shorter, and what a
  /// large table took goes back when it goes.
  static let keptMilliseconds = 1_000

  /// For a service, which may rest for long after a burst.
  ///
  /// - Parameter inBackground: threads of the allocator's own look after what rests. They cost an
  ///   idle process ten wake-ups a second; without them it is to say when it falls quiet
  ///   (`giveBack`).
  package static func configure(inBackground: Bool) {
    for name in unknown(inBackground: inBackground) {
      Logger(label: "tollgate").warning(
        "the allocator does not know a setting", metadata: ["name": "\(name)"])
    }
  }

  /// Sets what it is to be; answers the settings that this allocator does not know: none where it
  /// is the one that the project is built with.
  static func unknown(inBackground: Bool) -> [String] {
    var unknown: [String] = []
    if !set("arenas.dirty_decay_ms", keptMilliseconds) { unknown.append("arenas.dirty_decay_ms") }
    // Those that are there already; in the others nobody has been yet.
    for arena in 0..<arenas { _ = set("arena.\(arena).dirty_decay_ms", keptMilliseconds) }
    if !set("background_thread", inBackground) { unknown.append("background_thread") }
    return unknown
  }

  /// What was freed goes back now, but for what each thread keeps for itself; takes milliseconds.
  static func giveBack() {
    #if canImport(CJemalloc)
      _ = unsafe mallctl("arena.\(MALLCTL_ARENAS_ALL).purge", nil, nil, nil, 0)
    #endif
  }

  /// Bytes that this thread has been given since it began; nil where another allocator gives them.
  static var givenToThisThread: UInt64? { value("thread.allocated") }

  private static var arenas: UInt32 { value("arenas.narenas") ?? 0 }

  private static func value<Value: FixedWidthInteger>(_ name: String) -> Value? {
    #if canImport(CJemalloc)
      var value: Value = 0
      var size = MemoryLayout<Value>.size
      return unsafe mallctl(name, &value, &size, nil, 0) == 0 ? value : nil
    #else
      return nil
    #endif
  }

  private static func set<Value: BitwiseCopyable>(_ name: String, _ value: Value) -> Bool {
    #if canImport(CJemalloc)
      var value = value
      return unsafe mallctl(name, nil, nil, &value, MemoryLayout<Value>.size) == 0
    #else
      return true
    #endif
  }
}
