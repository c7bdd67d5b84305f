// A thread's tally while it runs: flat memory, written through addresses that never change, so
// that an answer costs a handful of additions. `tally()` makes of it what the audit reads.
//
// Latencies are kept in the buckets of an HDR histogram with three digits (2048 of one nanosecond,
// then 1024 for each doubling), and are given to the real one at the end.

internal import Histogram

/// Owned by one thread.
@safe final class Counts {
  private static let latencyMax: Int64 = 59_999_999_999
  private static let buckets = index(latencyMax) + 1

  struct Numbers {
    var completed = 0
    var replayed = 0
    var retries = 0
    var resolved = 0
    var unresolved = 0
    var connectionsLost = 0
    var dropped = 0
    var failed = 0
    var denied = 0
    /// Answers since the measured time began, and at its end.
    var recorded = 0
    var measured = 0
    var longest: Int64 = 0
  }

  let features: Int
  private let subjects: Int
  private let numbers: UnsafeMutablePointer<Numbers>
  private let admitted: UnsafeMutablePointer<Int64>
  private let failOpen: UnsafeMutablePointer<Int64>
  private let reasons: UnsafeMutablePointer<Int>
  private let sources: UnsafeMutablePointer<Int>
  private let errors: UnsafeMutablePointer<Int>
  private let latency: UnsafeMutablePointer<Int>

  init(subjects: Int, features: Int) {
    self.subjects = subjects
    self.features = features
    unsafe numbers = .allocate(capacity: 1)
    unsafe numbers.initialize(to: Numbers())
    unsafe admitted = Self.zeros(max(1, subjects * features))
    unsafe failOpen = Self.zeros(max(1, features))
    unsafe reasons = Self.zeros(Tally.codes)
    unsafe sources = Self.zeros(4)
    unsafe errors = Self.zeros(Tally.codes)
    unsafe latency = Self.zeros(Self.buckets)
  }

  deinit {
    unsafe numbers.deallocate()
    unsafe admitted.deallocate()
    unsafe failOpen.deallocate()
    unsafe reasons.deallocate()
    unsafe sources.deallocate()
    unsafe errors.deallocate()
    unsafe latency.deallocate()
  }

  private static func zeros<T: FixedWidthInteger>(_ count: Int) -> UnsafeMutablePointer<T> {
    let start = UnsafeMutablePointer<T>.allocate(capacity: count)
    unsafe start.initialize(repeating: 0, count: count)
    return unsafe start
  }

  @inline(__always) var n: Numbers {
    _read { yield unsafe numbers.pointee }
    _modify { yield unsafe &numbers.pointee }
  }

  /// `amounts` points to one for each feature.
  @unsafe @inline(__always)
  func admit(subject: Int, amounts: UnsafePointer<Int64>, byPolicy: Bool) {
    precondition(subject >= 0 && subject < subjects)
    for feature in 0..<features {
      unsafe admitted[subject * features + feature] += amounts[feature]
    }
    if byPolicy {
      for feature in 0..<features { unsafe failOpen[feature] += amounts[feature] }
    }
  }

  @inline(__always)
  func decided(_ reason: UInt16, _ source: UInt8, _ replayed: Bool) {
    unsafe reasons[Int(reason) & (Tally.codes - 1)] += 1
    unsafe sources[Int(source) & 3] += 1
    if replayed { n.replayed += 1 }
  }

  func failed(_ number: UInt16) {
    unsafe errors[Int(number) & (Tally.codes - 1)] += 1
    n.failed += 1
  }

  @inline(__always)
  func record(nanoseconds: Int64) {
    let value = min(max(nanoseconds, 1), Self.latencyMax)
    unsafe latency[Self.index(value)] += 1
    n.recorded += 1
    if value > n.longest { n.longest = value }
  }

  @inline(__always)
  private static func index(_ value: Int64) -> Int {
    let shift = 53 - (value | 2047).leadingZeroBitCount
    return shift << 10 + Int(value >> Int64(shift))
  }

  /// The least value of a bucket.
  private static func value(_ index: Int) -> UInt64 {
    index < 2048 ? UInt64(index) : UInt64(index & 1023 | 1024) << UInt64(index >> 10 - 1)
  }

  func startMeasuring() {
    unsafe latency.update(repeating: 0, count: Self.buckets)
    n.recorded = 0
    n.measured = 0
    n.longest = 0
  }

  func tally() -> Tally {
    var tally = Tally(subjects: subjects, features: features)
    for index in tally.admitted.indices { tally.admitted[index] = unsafe admitted[index] }
    for index in tally.failOpen.indices { tally.failOpen[index] = unsafe failOpen[index] }
    for code in 0..<Tally.codes {
      tally.reasons[code] = unsafe reasons[code]
      tally.errors[code] = unsafe errors[code]
    }
    for source in 0..<4 { tally.sources[source] = unsafe sources[source] }
    tally.completed = n.completed
    tally.measured = n.measured
    tally.replayed = n.replayed
    tally.retries = n.retries
    tally.resolved = n.resolved
    tally.unresolved = n.unresolved
    tally.connectionsLost = n.connectionsLost
    tally.dropped = n.dropped
    for index in 0..<Self.buckets {
      var count = unsafe latency[index]
      guard count > 0 else { continue }
      // The longest one is known exactly.
      if index == Self.index(n.longest) {
        tally.latency.record(UInt64(n.longest))
        count -= 1
      }
      tally.latency.record(Self.value(index), count: UInt64(count))
    }
    return tally
  }
}
